"""What differences a design can find, before it is run and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from reports.inference.effects import Effect
from reports.inference.intervals import LEVEL, Array, Error, simultaneous

#: How often a difference is to be found.
POWER = 0.8
#: Seeds beyond which nobody is asked to go.
MOST_SEEDS = 1000
#: Quantiles of the variance over seeds that a chance is the mean over.
_QUANTILES = (np.arange(400) + 0.5) / 400


@dataclass(frozen=True)
class Design:
    """What the error of one comparison among several depends on."""

    settings: int
    seeds: int
    #: How many methods are compared with the reference, all at once.
    claims: int
    #: Variance of the difference of one seed pair, the mean over settings.
    spread: float
    #: What test examples add to the variance of the mean over settings.
    examples: float = 0.0
    #: What all intervals hold at once with.
    at_once: float = LEVEL

    def error(self, seeds: int | None = None) -> Error:
        """With that many seeds instead, if given."""
        seeds = seeds or self.seeds
        return Error(self.spread / (seeds * self.settings), self.settings * (seeds - 1), self.examples)

    @property
    def level(self) -> float:
        return simultaneous(self.claims, self.at_once)

    @property
    def finds(self) -> float | None:
        """The smallest true difference whose interval excludes zero as often as `POWER`. A difference that is
        larger than the threshold by it is found beyond the threshold as often. None of one seed.
        """
        return self._finds(self.seeds)

    def _finds(self, seeds: int) -> float | None:
        if seeds < 2:
            return None
        error = self.error(seeds)
        halves = _halves(error, self.level)
        return _solve(lambda d: float(stats.norm.cdf((d - halves) / error.total).mean()), error)

    @property
    def margin(self) -> float | None:
        """The smallest threshold within which methods that do not differ are shown to be as often."""
        if self.seeds < 2:
            return None
        error = self.error()
        room = _halves(error, self.level)
        return _solve(
            lambda d: float(np.maximum(0, 2 * stats.norm.cdf((d - room) / error.total) - 1).mean()), error
        )

    def needs(self, difference: float) -> int | None:
        """How many seeds find this difference as often as `POWER`; None where no number of seeds does,
        because the test examples are too few, or more than `MOST_SEEDS`.
        """
        if (self._finds(MOST_SEEDS) or 0.0) > difference:
            return None
        low, high = 1, MOST_SEEDS
        while high - low > 1:
            middle = (low + high) // 2
            if (self._finds(middle) or 0.0) > difference:
                low = middle
            else:
                high = middle
        return high


def of_effects(effects: Sequence[Effect], at_once: float = LEVEL) -> Design | None:
    """The design that these comparisons had, by the median of their errors; None where none has any.

    `at_once`: what all their intervals hold at once with.
    """
    known = [
        (effect, effect.error) for effect in effects if effect.error is not None and not effect.error.none
    ]
    if not known:
        return None
    spreads = [np.mean([(part.seeds or 0.0) * part.pairs for part in effect.parts]) for effect, _ in known]
    pairs = [effect.pairs / len(effect.parts) for effect, _ in known]
    return Design(
        settings=len(known[0][0].parts),
        seeds=round(float(np.median(pairs))),
        claims=len(effects),
        spread=float(np.median(spreads)),
        examples=float(np.median([error.examples for _, error in known])),
        at_once=at_once,
    )


def of_runs(sd: float, settings: int, seeds: int, claims: int) -> Design:
    """A design of runs with that standard deviation over seeds, none of which the sides of a pair share."""
    return Design(settings, seeds, claims, spread=2 * sd**2)


def _halves(error: Error, level: float) -> Array:
    """Half the width of the interval at each quantile of the variance that the seeds may show."""
    tail = (1 + level) / 2
    shown = stats.chi2.ppf(_QUANTILES, error.freedom) / error.freedom
    seeds = stats.t.ppf(tail, error.freedom) ** 2 * error.seeds * shown
    halves: Array = np.sqrt(seeds + stats.norm.ppf(tail) ** 2 * error.examples)
    return halves


def _solve(chance: Callable[[float], float], error: Error) -> float:
    """The difference at which a chance that rises with it is `POWER`."""
    high = error.total
    while chance(high) < POWER:
        high *= 2
    return float(optimize.brentq(lambda d: chance(d) - POWER, 0.0, high))
