"""What intervals are made of: levels, standard errors by source, and how they widen for several claims."""

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
#: Seeds from which on there are intervals. Two have one degree of freedom, where 95% is 12.7 standard errors
#: to either side: that tells nothing.
LEAST_SEEDS = 3
#: Scores are told apart to so many digits, of their size where they have units. Below that is what rounding
#: left, in float32 of older stores: differences that are equal would not add up to equal sums.
RESOLUTION_DIGITS = 6
RESOLUTION = 10.0**-RESOLUTION_DIGITS


def simultaneous(claims: int, level: float = LEVEL) -> float:
    """The level of each of so many two-sided intervals that hold all at once with `level` (Šidák, 1967).

    It needs no independence: for estimates that are jointly normal, whatever their correlations, the chance
    that all hold is at least the product. Methods that share a reference are such.
    """
    return float(level ** (1 / max(1, claims)))


def of_each(families: int) -> float:
    """The level of each of so many families of intervals that hold all at once with `LEVEL` (Bonferroni): it
    holds whatever they have to do with one another.
    """
    return 1 - ALPHA / families


def t_half(sd: ArrayLike, count: ArrayLike) -> Array:
    """Half the width of Student's interval of a mean, of a standard deviation over `count` values."""
    count = np.asarray(count)
    half: Array = stats.t.ppf((1 + LEVEL) / 2, count - 1) * sd / np.sqrt(count)
    return half


@dataclass(frozen=True)
class Error:
    """What makes a mean over settings uncertain, apart by source, in squared units of the score."""

    #: Squared standard error over seeds, and its degrees of freedom.
    seeds: float
    freedom: float
    #: What test examples add to it.
    examples: float
    #: What tuning adds to it, which might have chosen other points (see `reports.inference.crossed`).
    tuning: float = 0.0
    #: What scores are large or small beside.
    size: float = 1.0
    #: The largest difference that two scores can have.
    limit: float = math.inf

    @property
    def total(self) -> float:
        """The standard error of all sources."""
        return math.sqrt(self.seeds + self.examples + self.tuning)

    @property
    def none(self) -> bool:
        """Whether no run differs from another, so that nothing is known of the noise."""
        return math.sqrt(self.seeds + self.examples) <= RESOLUTION * self.size

    def half(self, level: float = LEVEL) -> float:
        """Half the width of the interval: the squares of each source's own half add up (Howe, 1974; Zou and
        Donner, 2008).

        So the few degrees of freedom of the seeds widen their part alone, and a spread of seeds that is small
        by chance does not narrow the whole: one Satterthwaite approximation of both holds less often than it
        says with few seeds on one task. The variance of the examples, of which there are many, is taken as
        known, and so is that of tuning.
        """
        tail = (1 + level) / 2
        of_seeds = float(stats.t.ppf(tail, self.freedom)) ** 2 * self.seeds if self.seeds else 0.0
        return math.sqrt(of_seeds + float(stats.norm.ppf(tail)) ** 2 * (self.examples + self.tuning))

    def interval(self, mean: float, level: float = LEVEL) -> Bounds:
        """Cut to differences that there can be."""
        half = self.half(level)
        return max(mean - half, -self.limit), min(mean + half, self.limit)


def welch(variances: Sequence[float], freedoms: Sequence[float]) -> tuple[float, float]:
    """Squared standard error of a mean over settings, and its degrees of freedom (Satterthwaite, 1946).

    `variances`: the squared standard error of each setting's mean.
    """
    whole = sum(variances)
    if not whole:
        return 0.0, float(sum(freedoms))
    parts = sum(part**2 / freedom for part, freedom in zip(variances, freedoms, strict=True))
    return whole / len(variances) ** 2, whole**2 / parts
