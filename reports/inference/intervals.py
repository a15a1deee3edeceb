"""Intervals: levels for simultaneous claims, and standard errors by source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]
Bounds = tuple[float, float]

LEVEL = 0.95
ALPHA = 0.05
#: Fewest seeds with an interval. Two have one degree of freedom, where 95% is 12.7 standard errors to either
#: side.
LEAST_SEEDS = 3
#: Digits in which scores are compared, relative to their size if they have units. Further digits are
#: rounding errors, in float32 of older stores: equal differences would not add up to equal sums.
RESOLUTION_DIGITS = 6
RESOLUTION = 10.0**-RESOLUTION_DIGITS


def simultaneous(claims: int, level: float = LEVEL) -> float:
    """The level of each of so many two-sided intervals that are simultaneous at `level` (Šidák, 1967).

    It needs no independence: for jointly normal estimates of any correlation, as methods with one reference
    have, the chance that all hold is at least the product.
    """
    return float(level ** (1 / max(1, claims)))


def of_each(families: int) -> float:
    """The level of each of so many families of intervals that are simultaneous at `LEVEL` (Bonferroni).

    It holds for families of any dependence.
    """
    return 1 - ALPHA / families


def t_half(sd: ArrayLike, count: ArrayLike) -> Array:
    """Half the width of Student's interval of a mean, given the standard deviation of `count` values."""
    count = np.asarray(count)
    half: Array = stats.t.ppf((1 + LEVEL) / 2, count - 1) * sd / np.sqrt(count)
    return half


@dataclass(frozen=True)
class Error:
    """The variance of a mean over settings by source, in squared units of the score."""

    #: Squared standard error over seeds, and its degrees of freedom.
    seeds: float
    freedom: float
    #: Variance that test examples add.
    examples: float
    #: Variance that tuning adds, since it might have chosen other points (`reports.inference.crossed`).
    tuning: float = 0.0
    #: Typical size of scores.
    size: float = 1.0
    #: The largest difference that two scores can have.
    limit: float = math.inf

    @property
    def total(self) -> float:
        """The standard error of all sources together."""
        return math.sqrt(self.seeds + self.examples + self.tuning)

    @property
    def none(self) -> bool:
        """Whether no run differs from another, so that the noise is unknown."""
        return math.sqrt(self.seeds + self.examples) <= RESOLUTION * self.size

    def half(self, level: float = LEVEL) -> float:
        """Half the width of the interval: squares of each source's half width add up.

        (Howe, 1974; Zou and Donner, 2008.) So the few degrees of freedom of the seeds widen their part alone,
        and a spread of seeds that is small by chance does not narrow the interval. One Satterthwaite
        approximation of both covers less than its level with few seeds on one task. The variances of the
        many examples and of tuning count as known.
        """
        tail = (1 + level) / 2
        of_seeds = float(stats.t.ppf(tail, self.freedom)) ** 2 * self.seeds if self.seeds else 0.0
        return math.sqrt(of_seeds + float(stats.norm.ppf(tail)) ** 2 * (self.examples + self.tuning))

    def interval(self, mean: float, level: float = LEVEL) -> Bounds:
        """The interval of a mean, cut to possible differences."""
        half = self.half(level)
        return max(mean - half, -self.limit), min(mean + half, self.limit)


def welch(variances: Sequence[float], freedoms: Sequence[float]) -> tuple[float, float]:
    """Squared standard error of a mean over settings, and its degrees of freedom (Satterthwaite, 1946).

    `variances`: the squared standard error of each setting's mean.
    """
    total = sum(variances)
    if not total:
        return 0.0, float(sum(freedoms))
    parts = sum(part**2 / freedom for part, freedom in zip(variances, freedoms, strict=True))
    return total / len(variances) ** 2, total**2 / parts
