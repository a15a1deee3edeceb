"""The smallest difference that a planned or finished experiment can detect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from statistics import fmean

import numpy as np
from numpy.random import Generator
from scipy import optimize, special

from tensorbench.reports.inference.effects import Effect
from tensorbench.reports.inference.intervals import (
    LEAST_SEEDS,
    Array,
    Error,
    chi2_quantile,
    simultaneous,
    t_quantile,
    welch,
)
from tensorbench.reports.inference.moderation import expected_freedom
from tensorbench.reports.inference.sequential import Looks
from tensorbench.reports.inference.studies import CompleteStudies, of_pair, pooled_failures

#: The probability with which a difference should be detected.
POWER = 0.8
#: The largest number of seeds that is suggested.
MOST_SEEDS = 1000
#: Probabilities are averaged over 2**_LOG_DRAWS quasi-random draws of the variances over seeds.
_LOG_DRAWS = 8
#: A factor on the mean of jackknife variances, found by simulation. Jackknife variances vary more than
#: variances of normal values, mostly at k ≥ 8. An interval that is wide by chance detects less, so the mean
#: without this factor would promise too much.
_TAILS = 1.1
#: Studies are simulated up to this number of trials. More hardly change the variance, and take seconds.
_MOST_TRIALS = 64
#: The largest number of simulated comparisons, and the largest sum of their degrees of freedom.
_COMPARISONS, _FREEDOM = 200, 800
#: A method's assumed score at its best learning rate, and its score by chance.
_BEST, _CHANCE = 0.85, 0.5


@dataclass(frozen=True)
class Design:
    """The size and the noise of an experiment, which determine the intervals of its comparisons."""

    #: The number of seeds on each setting.
    seeds: int
    #: The number of methods compared with the reference. Their intervals are simultaneous.
    claims: int
    #: The variance over seeds of a paired difference, on each setting.
    spreads: tuple[float, ...]
    #: The variance that test examples add to the mean over settings, whatever the number of seeds.
    examples: float = 0.0
    #: Maps a number of seeds or studies to the mean estimated variance of a paired difference, up to a
    #: factor. None if the variance does not depend on the number.
    shown: Callable[[int], float] | None = field(default=None, compare=False, repr=False)
    #: The number of comparisons whose variances are moderated together, at least 1. None for all claims.
    moderated: int | None = None
    #: The looks of a sequential experiment. None if all seeds or studies run.
    looks: Looks | None = None

    @property
    def settings(self) -> int:
        return len(self.spreads)

    def error(self) -> Error:
        """The error of the mean difference over settings, with Welch's degrees of freedom."""
        variances = [spread / self.seeds for spread in self.spreads]
        freedom, _ = expected_freedom(self.seeds - 1, self.moderated or self.claims, self.settings)
        return Error(*welch(variances, [freedom] * self.settings), self.examples)

    def of(self, seeds: int) -> Design:
        """This design with another number of seeds."""
        factor = self.shown(seeds) / self.shown(self.seeds) if self.shown else 1.0
        return replace(self, seeds=seeds, spreads=tuple(factor * spread for spread in self.spreads))

    @property
    def level(self) -> float:
        return self.looks.level(self.claims, self.seeds) if self.looks else simultaneous(self.claims)

    @property
    def finds(self) -> float | None:
        """The smallest true difference that is detected with probability `POWER`.

        A difference is detected if its interval excludes zero. With the same probability, a difference that
        exceeds the threshold by this amount gets the verdict "beyond". None for fewer than `LEAST_SEEDS`
        seeds.
        """
        if self.seeds < LEAST_SEEDS:
            return None
        error, halves = self.error(), self._halves()
        return _solve(lambda d: float(special.ndtr((d - halves) / error.total).mean()), error)

    @property
    def margin(self) -> float | None:
        """The smallest threshold at which equal methods get the verdict "within" with probability `POWER`.

        None for fewer than `LEAST_SEEDS` seeds.
        """
        if self.seeds < LEAST_SEEDS:
            return None
        error, room = self.error(), self._halves()
        return _solve(
            lambda d: float(np.maximum(0, 2 * special.ndtr((d - room) / error.total) - 1).mean()), error
        )

    def _halves(self) -> Array:
        """Half widths of the interval (draws,), one for each draw of the sample variances over seeds.

        Variances are moderated as in a report. Each draw has the degrees of freedom that follow from its own
        variances.
        """
        from scipy.stats import qmc

        even = qmc.Sobol(self.settings, rng=0).random_base2(_LOG_DRAWS)
        moderated, of_sum = expected_freedom(self.seeds - 1, self.moderated or self.claims, self.settings)
        shown = np.array(self.spreads) / self.seeds * chi2_quantile(even, of_sum) / of_sum
        total, squares = shown.sum(1), (shown**2).sum(1)
        # Without any variation all settings have equal weight.
        freedom = np.full_like(total, self.settings)
        np.divide(total**2, squares, out=freedom, where=squares > 0)
        freedom *= moderated
        tail = (1 + self.level) / 2
        of_seeds = t_quantile(tail, freedom) ** 2 * total / self.settings**2
        halves: Array = np.sqrt(of_seeds + special.ndtri(tail) ** 2 * self.examples)
        return halves

    def needs(self, difference: float) -> int | None:
        """The smallest number of seeds with which this difference is detected with probability `POWER`.

        None if more than `MOST_SEEDS` are needed, or if test examples vary too much for any number
        of seeds. Studies are simulated for each number.
        """
        if (self.of(MOST_SEEDS).finds or 0.0) > difference:
            return None
        low, high = LEAST_SEEDS - 1, MOST_SEEDS
        while high - low > 1:
            middle = (low + high) // 2
            if (self.of(middle).finds or 0.0) > difference:
                low = middle
            else:
                high = middle
        return high


def of_effects(effects: Sequence[Effect], claims: int) -> Design | None:
    """The design of measured comparisons, with their mean variances.

    The mean is taken over all comparisons whose noise is known. A median would promise too much, since most
    variances over few seeds are too small. Leaving out comparisons with collapsed runs would promise too much
    as well. As in a report, the variances of these are not moderated. `claims` is the number of comparisons
    with simultaneous intervals. Returns None if no comparison has known noise.
    """
    known = [(each, each.error) for each in effects if each.error is not None and not each.error.none]
    if not known:
        return None
    seeds = [round(sum(part.pairs for part in each.parts) / len(each.parts)) for each, _ in known]
    spreads = [[part.error.seeds * part.pairs for part in each.parts if part.error] for each, _ in known]
    sound = sum(all(part.freedom is not None for part in each.parts) for each, _ in known)
    return Design(
        seeds=round(fmean(seeds)),
        claims=claims,
        moderated=max(1, sound) if sound < len(known) else claims,
        spreads=tuple(map(fmean, zip(*spreads, strict=True))),
        examples=fmean(error.examples for _, error in known),
    )


def of_runs(sd: float, settings: int, seeds: int, claims: int, examples: float = 0.0) -> Design:
    """The design of an experiment in which each run's score has the standard deviation `sd` over seeds.

    The two runs of a pair count as independent. `examples` is the variance that test examples add to a mean
    difference over settings.
    """
    return Design(seeds, claims, spreads=(2 * sd**2,) * settings, examples=examples)


def _solve(chance: Callable[[float], float], error: Error) -> float:
    """The difference at which `chance` reaches `POWER`. `chance` increases with the difference."""
    high = error.total
    while chance(high) < POWER:
        high *= 2
    return float(optimize.brentq(lambda d: chance(d) - POWER, 0.0, high))


# --- studies ---


@dataclass(frozen=True)
class Response:
    """A model of a method's scores: a parabola in the log of the learning rate, noise, and failures.

    Scores lie between 0 and 1, so that 0.01 is a point.
    """

    #: The drop in score one decade away from the optimum.
    curvature: float = 0.04
    #: The width of the window, in decades.
    decades: float = 1.0
    #: The largest distance of an optimum from the window's centre, in decades.
    optima: float = 0.35
    #: The standard deviation of a trial's quality over seeds, in units of the score.
    seeds: float = 0.0065
    #: The standard deviation of the error of a test score.
    answers: float = 0.0035
    #: The standard deviation of the error of a validation loss, in units of the score.
    validation: float = 0.007
    #: The distance above the optimum, in decades, beyond which every trial fails.
    cliff: float = np.inf
    #: The share of trials that fail at random, whatever their learning rate.
    failures: float = 0.0
    #: The score that a failure costs.
    fall: float = _BEST - _CHANCE

    def trials(self, numbers: Generator, offsets: Array, optimum: float) -> tuple[Array, Array]:
        """Simulated validation losses and test scores of trials, both in the shape of `offsets`.

        `optimum` is the offset of the best rate.
        """
        away, shape = offsets - optimum, offsets.shape
        failed = (away > self.cliff) | (numbers.random(shape) < self.failures)
        quality = -self.curvature * away**2 + numbers.normal(0, self.seeds, shape) - self.fall * failed
        losses = numbers.normal(0, self.validation, shape) - quality
        return losses, _BEST + quality + numbers.normal(0, self.answers, shape)

    def studies(self, numbers: Generator, offsets: Array, optimum: float) -> CompleteStudies:
        """Simulated studies of a method with these offsets (studies, points).

        `optimum` is the offset of the best rate.
        """
        return CompleteStudies(*self.trials(numbers, offsets, optimum), offsets=offsets, chance=_CHANCE)


def stratified(numbers: Generator, studies: int, points: int, decades: float = 1.0) -> Array:
    """Random offsets (studies, points) that cover the window evenly within each study.

    The window, `decades` wide, is split into as many equal intervals as a study has points. One offset is
    drawn uniformly from each interval. The order of a study's offsets is random.
    """
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
) -> Design:
    """The design of a comparison of two methods by studies. `response` describes both methods on every task.

    `claims` is the number of comparisons with simultaneous intervals, including this one. Scores are those
    after `k` trials. `examples` is the variance that test examples add to a difference on one task. Raises
    ValueError if there are too few studies for an interval, or if leaving out one study leaves fewer than k
    trials.
    """
    if studies < LEAST_SEEDS:
        raise ValueError(f"studies: {studies}, expected at least {LEAST_SEEDS}")
    if not 1 <= k <= (studies - 1) * points:
        raise ValueError(f"k: {k}, expected 1 to {(studies - 1) * points}, the trials of all studies but one")
    shown = partial(_variance, response, (claims + 1) * tasks, points, k)
    return Design(studies, claims, (_TAILS * shown(studies),) * tasks, examples / tasks, shown=shown)


@cache
def _variance(response: Response, cells: int, points: int, k: int, studies: int) -> float:
    """Simulates comparisons of two methods after k trials. Returns the mean variance per study.

    The variance is the jackknife's plus that of failures. It decreases with the number of studies, mostly for
    few points: if no trial failed, the assumed share of failures is larger for fewer trials. `cells` is the
    number of cells whose failures are pooled. All are assumed to fail as often as the two that are compared.
    """
    # The jackknife leaves out one study, and k trials must remain.
    studies = max(min(studies, _MOST_TRIALS // points), -(-k // points) + 1, LEAST_SEEDS)
    numbers = np.random.default_rng(0)
    errors = []
    for _ in range(min(_COMPARISONS, _FREEDOM // (studies - 1))):
        offsets = stratified(numbers, studies, points, response.decades)
        optima = numbers.uniform(-response.optima, response.optima, 2)
        method, reference = (response.studies(numbers, offsets, optimum) for optimum in optima)
        failures = pooled_failures([method, reference] * (cells // 2))
        part = of_pair(method, reference, k, failures)
        errors.append((part.seeds or 0.0) + part.failures)
    return studies * fmean(errors)


def of_stored(
    stored: Design, response: Response, *, tasks: int, studies: int, points: int, k: int, claims: int
) -> Design:
    """The design of a comparison with these numbers of tasks, studies and claims, and stored studies' noise.

    `stored` is the result of `of_effects` for effects from `studies.of_pair` after `k` trials.
    `response` is used to simulate how the variance changes with the number of studies.
    """
    spreads = stored.spreads if stored.settings == tasks else (fmean(stored.spreads),) * tasks
    planned = replace(
        stored,
        claims=claims,
        moderated=None,
        spreads=tuple(_TAILS * spread for spread in spreads),
        examples=stored.examples * stored.settings / tasks,
        shown=partial(_variance, response, (claims + 1) * tasks, points, k),
    )
    return planned.of(studies)
