"""Confidence intervals: the levels of simultaneous intervals, and the errors that set their widths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]
Bounds = tuple[float, float]

LEVEL = 0.95
#: The smallest number of seeds with an interval. Two seeds have one degree of freedom, for which a 95%
#: interval extends 12.7 standard errors to either side.
LEAST_SEEDS = 3
#: The number of decimals to which scores are compared. Scores with units are first divided by their typical
#: size. Further digits are rounding errors of float32, in which older stores hold scores.
RESOLUTION_DIGITS = 6
RESOLUTION = 10.0**-RESOLUTION_DIGITS


def simultaneous(claims: int) -> float:
    """The level that each of several intervals needs for the joint level `LEVEL` (Šidák, 1967).

    `claims` is the number of intervals, which are two-sided. Independence is not required: for jointly normal
    estimates with any correlation, such as differences from one reference, the joint coverage is at least the
    product.
    """
    return float(LEVEL ** (1 / max(1, claims)))


def t_quantile(probability: ArrayLike, freedom: ArrayLike) -> Array:
    """Quantiles of Student's t distribution.

    Unlike `scipy.stats`, this is quick for single numbers and quick to import.
    """
    quantiles: Array = special.stdtrit(freedom, probability)
    return quantiles


def chi2_quantile(probability: ArrayLike, freedom: ArrayLike) -> Array:
    """Quantiles of the chi-squared distribution. Like `t_quantile`, this needs no import of `scipy.stats`."""
    quantiles: Array = 2 * special.gammaincinv(np.asarray(freedom, float) / 2, probability)
    return quantiles


def most_of_share(count: int, trials: int, level: float = LEVEL) -> float:
    """The exact one-sided upper limit of a probability (Clopper and Pearson, 1934).

    The event occurred in `count` of `trials` independent trials.
    """
    return float(special.betaincinv(count + 1, trials - count, level)) if count < trials else 1.0


def share_interval(count: int, trials: int) -> Bounds:
    """The exact interval of a probability at `LEVEL` (Clopper and Pearson, 1934).

    The event occurred in `count` of `trials` independent trials.
    """
    tail = (1 - LEVEL) / 2
    low = float(special.betaincinv(count, trials - count + 1, tail)) if count else 0.0
    return low, most_of_share(count, trials, 1 - tail)


@dataclass(frozen=True)
class Error:
    """The error of a mean over settings: one variance per source, in squared units of the score."""

    #: The squared standard error over seeds.
    seeds: float
    #: The degrees of freedom of `seeds`.
    freedom: float
    #: The variance that test examples and the choice by one validation sample add.
    examples: float
    #: The typical size of scores.
    size: float = 1.0
    #: The largest possible difference of two scores.
    limit: float = math.inf

    @property
    def total(self) -> float:
        """The standard error from all sources together."""
        return math.sqrt(self.seeds + self.examples)

    @property
    def none(self) -> bool:
        """Whether no run differs from another, so that the noise is unknown."""
        return math.sqrt(self.seeds + self.examples) <= RESOLUTION * self.size

    def half(self, level: float = LEVEL) -> float:
        """Half the width of the interval: the root of the sum of each source's squared half width.

        The method is Howe's (1974; Zou and Donner, 2008). The few degrees of freedom of seeds widen only the
        half width that belongs to seeds. A single Satterthwaite approximation for all sources would cover too
        rarely with few seeds on one task. The variance due to test examples counts as known.
        """
        tail = (1 + level) / 2
        of_seeds = float(t_quantile(tail, self.freedom)) ** 2 * self.seeds if self.seeds else 0.0
        return math.sqrt(of_seeds + float(special.ndtri(tail)) ** 2 * self.examples)

    def interval(self, mean: float, level: float = LEVEL) -> Bounds:
        """The interval around this mean, clipped at the largest possible difference on either side."""
        half = self.half(level)
        return max(mean - half, -self.limit), min(mean + half, self.limit)


def welch(variances: Sequence[float], freedoms: Sequence[float]) -> tuple[float, float]:
    """The squared standard error of a mean over settings, and its degrees of freedom (Satterthwaite, 1946).

    `variances` are the squared standard errors of the settings' means, and `freedoms` their degrees of
    freedom.
    """
    total = sum(variances)
    if not total:
        return 0.0, float(sum(freedoms))
    # Shares, since squares of tiny variances would be zero.
    parts = sum((part / total) ** 2 / freedom for part, freedom in zip(variances, freedoms, strict=True))
    return total / len(variances) ** 2, 1 / parts
