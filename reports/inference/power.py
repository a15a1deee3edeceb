"""What differences a design can find, before it is run and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from scipy import optimize, stats

from reports.inference.effects import Effect
from reports.inference.intervals import LEAST_SEEDS, LEVEL, Array, Error, simultaneous, welch

#: How often a difference is to be found.
POWER = 0.8
#: Seeds beyond which nobody is asked to go.
MOST_SEEDS = 1000
#: A chance is the mean over 2 to the power of so many draws of what the seeds show.
_LOG_DRAWS = 8


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
