"""What differences a design can find, before it is run and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.random import Generator
from scipy import optimize, stats

from reports.inference.effects import Effect
from reports.inference.intervals import LEAST_SEEDS, LEVEL, Array, Error, simultaneous, welch
from reports.inference.studies import Studies, of_pair

#: How often a difference is to be found.
POWER = 0.8
#: Seeds beyond which nobody is asked to go.
MOST_SEEDS = 1000
#: A chance is the mean over 2 to the power of so many draws of what the seeds show.
_LOG_DRAWS = 8
#: How much larger variances are taken than jackknives show on average: their errors vary more than those of
#: normal values, most at k = 8 and beyond, and the interval that is wide by chance finds less. Simulated.
_TAILS = 1.1
#: A method's score at its best rate, and the score at chance.
_BEST, _CHANCE = 0.85, 0.5


@dataclass(frozen=True)
class Design:
    """What the error of one comparison among several depends on."""

    #: On each setting.
    seeds: int
    #: How many methods are compared with the reference, all at once.
    claims: int
    #: Variance of the difference of one seed pair, on each setting.
    spreads: tuple[float, ...]
    #: What test examples and tuning add to the variance of the mean over settings, whatever the seeds.
    examples: float = 0.0
    tuning: float = 0.0
    #: What all intervals hold at once with.
    at_once: float = LEVEL

    @property
    def settings(self) -> int:
        return len(self.spreads)

    @property
    def known(self) -> float:
        """The variance that more seeds do not lessen."""
        return self.examples + self.tuning

    def error(self, seeds: int | None = None) -> Error:
        """With that many seeds instead, if given.

        Where one setting has most of the variance, it also has most of the degrees of freedom.
        """
        seeds = seeds or self.seeds
        variances = [spread / seeds for spread in self.spreads]
        return Error(*welch(variances, [seeds - 1] * self.settings), self.examples, self.tuning)

    @property
    def level(self) -> float:
        return simultaneous(self.claims, self.at_once)

    @property
    def finds(self) -> float | None:
        """The smallest true difference whose interval excludes zero as often as `POWER`. A difference that is
        larger than the threshold by it is found beyond the threshold as often. None of fewer than
        `LEAST_SEEDS`.
        """
        return self._finds(self.seeds)

    def _finds(self, seeds: int) -> float | None:
        if seeds < LEAST_SEEDS:
            return None
        error, halves = self.error(seeds), self._halves(seeds)
        return _solve(lambda d: float(stats.norm.cdf((d - halves) / error.total).mean()), error)

    @property
    def margin(self) -> float | None:
        """The smallest threshold within which methods that do not differ are shown to be as often."""
        if self.seeds < LEAST_SEEDS:
            return None
        error, room = self.error(), self._halves(self.seeds)
        return _solve(
            lambda d: float(np.maximum(0, 2 * stats.norm.cdf((d - room) / error.total) - 1).mean()), error
        )

    def _halves(self, seeds: int) -> Array:
        """Half the width of the interval in each draw of the variances that the seeds may show (draws,).

        An interval has the degrees of freedom that those variances make, and not those of the true ones.
        """
        even = stats.qmc.Sobol(self.settings, rng=0).random_base2(_LOG_DRAWS)
        shown = np.array(self.spreads) / seeds * stats.chi2.ppf(even, seeds - 1) / (seeds - 1)
        whole, squares = shown.sum(1), (shown**2).sum(1)
        # Where no setting has any spread, all of them have the same.
        freedom = np.full_like(whole, self.settings)
        np.divide(whole**2, squares, out=freedom, where=squares > 0)
        freedom *= seeds - 1
        tail = (1 + self.level) / 2
        of_seeds = stats.t.ppf(tail, freedom) ** 2 * whole / self.settings**2
        halves: Array = np.sqrt(of_seeds + stats.norm.ppf(tail) ** 2 * self.known)
        return halves

    def needs(self, difference: float) -> int | None:
        """How many seeds find this difference as often as `POWER`; None where no number of seeds does,
        because test examples or tuning vary too much, or more than `MOST_SEEDS`.
        """
        if (self._finds(MOST_SEEDS) or 0.0) > difference:
            return None
        low, high = LEAST_SEEDS - 1, MOST_SEEDS
        while high - low > 1:
            middle = (low + high) // 2
            if (self._finds(middle) or 0.0) > difference:
                low = middle
            else:
                high = middle
        return high


def of_effect(effect: Effect, claims: int, at_once: float = LEVEL) -> Design | None:
    """The design that this comparison has, one of so many; None where nothing is known of its noise.

    `at_once`: what all their intervals hold at once with.
    """
    if effect.error is None or effect.error.none:
        return None
    return Design(
        seeds=round(effect.pairs / len(effect.parts)),
        claims=claims,
        spreads=tuple((part.seeds or 0.0) * part.pairs for part in effect.parts),
        examples=effect.error.examples,
        tuning=effect.error.tuning,
        at_once=at_once,
    )


def of_effects(effects: Sequence[Effect], claims: int, at_once: float = LEVEL) -> Design | None:
    """The design of these comparisons, with the mean of their variances, source by source; None where none
    has any. `claims`, `at_once`: as of `of_effect`.

    The variance of few seeds is mostly too small: that of the comparison in the middle would promise too
    much, and so would leaving out those with runs that collapsed.
    """
    known = [design for one in effects if (design := of_effect(one, claims, at_once))]
    if not known:
        return None
    return replace(
        known[0],
        seeds=round(fmean(design.seeds for design in known)),
        spreads=tuple(map(fmean, zip(*(design.spreads for design in known), strict=True))),
        examples=fmean(design.examples for design in known),
        tuning=fmean(design.tuning for design in known),
    )


def of_runs(sd: float, settings: int, seeds: int, claims: int, examples: float = 0.0) -> Design:
    """A design of runs with that standard deviation over seeds, none of which the sides of a pair share.

    `examples`: what test examples add to the variance of a mean difference over settings.
    """
    return Design(seeds, claims, spreads=(2 * sd**2,) * settings, examples=examples)


def _solve(chance: Callable[[float], float], error: Error) -> float:
    """The difference at which a chance that rises with it is `POWER`."""
    high = error.total
    while chance(high) < POWER:
        high *= 2
    return float(optimize.brentq(lambda d: chance(d) - POWER, 0.0, high))


# --- studies ---


@dataclass(frozen=True)
class Response:
    """Assumed scores of a method's trials: a parabola in the logarithm of the rate, seeds, and failures.

    Scores are shares; 0.01 is a point.
    """

    #: What a rate one decade off the optimum costs, the window's width, and how far optima lie at most from
    #: its centre, in decades.
    curvature: float = 0.04
    decades: float = 1.0
    optima: float = 0.35
    #: Standard deviations: of a trial over seeds, of what its own answers add, of the validation loss in the
    #: score's units.
    seeds: float = 0.0065
    answers: float = 0.0035
    validation: float = 0.007
    #: From how many decades above its optimum a method fails, and the share of seeds that fail at any rate.
    cliff: float = np.inf
    failures: float = 0.0
    fall: float = _BEST - _CHANCE

    def trials(self, numbers: Generator, offsets: Array, optimum: float) -> tuple[Array, Array]:
        """Validation losses and test scores of trials at these offsets, of the same shape."""
        away, shape = offsets - optimum, offsets.shape
        failed = (away > self.cliff) | (numbers.random(shape) < self.failures)
        quality = -self.curvature * away**2 + numbers.normal(0, self.seeds, shape) - self.fall * failed
        losses = numbers.normal(0, self.validation, shape) - quality
        return losses, _BEST + quality + numbers.normal(0, self.answers, shape)

    def studies(self, numbers: Generator, offsets: Array, optimum: float) -> Studies:
        """Studies of a method with these offsets (studies, points)."""
        return Studies(*self.trials(numbers, offsets, optimum), offsets=offsets, chance=_CHANCE)


def stratified(numbers: Generator, studies: int, points: int, decades: float = 1.0) -> Array:
    """Offsets (studies, points), uniform within equal parts of the window, a part each, in random order."""
    parts = numbers.permuted(np.tile(np.arange(points), (studies, 1)), axis=1)
    return ((parts + numbers.random((studies, points))) / points - 0.5) * decades


def of_assumed(
    response: Response,
    *,
    tasks: int,
    studies: int,
    points: int,
    k: int,
    claims: int,
    examples: float = 0.0,
    repeats: int = 200,
) -> Design:
    """The design of one comparison, out of so many, with this response on every task.

    Its error is the mean over repeats of simulated comparisons. `examples`: what test examples add to the
    variance of a difference on one task. Raises ValueError if there are too few studies for an interval, or
    if k trials are not left without one study.
    """
    if studies < LEAST_SEEDS:
        raise ValueError(f"studies: {studies}, expected at least {LEAST_SEEDS}")
    if not 1 <= k <= (studies - 1) * points:
        raise ValueError(f"k: {k}, expected 1 to {(studies - 1) * points}, the trials of all studies but one")
    numbers = np.random.default_rng(0)
    errors = []
    for _ in range(repeats):
        offsets = stratified(numbers, studies, points, response.decades)
        optima = numbers.uniform(-response.optima, response.optima, 2)
        method, reference = (response.studies(numbers, offsets, optimum) for optimum in optima)
        errors.append(of_pair(method, reference, k).seeds or 0.0)
    return Design(studies, claims, (_TAILS * studies * fmean(errors),) * tasks, examples / tasks)


def of_stored(stored: Design, *, tasks: int, studies: int, claims: int, points: float = 1.0) -> Design:
    """Another design with the noise of stored studies at the same k.

    `stored` is that of `power.of_effects` on effects of `studies.of_pair`. `points`: how many points a study
    is to have, by how many the stored ones have.
    """
    spreads = stored.spreads if stored.settings == tasks else (fmean(stored.spreads),) * tasks
    examples = stored.examples * stored.settings / tasks
    return replace(
        stored,
        seeds=studies,
        claims=claims,
        spreads=tuple(_TAILS * spread / points for spread in spreads),
        examples=examples,
    )
