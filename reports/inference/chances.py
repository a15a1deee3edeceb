"""P(A > B): the chance that a run of one method scores above a run of the other, whatever their seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import StrEnum

import numpy as np
from scipy import stats

from reports.inference.intervals import LEVEL, Array, Bounds

#: What Bouthillier et al. (2021) ask of P(A > B) before they call A better than B.
MEANINGFUL = 0.75


class Criterion(StrEnum):
    """The answers of Bouthillier et al. (2021) from the interval of P(A > B), for either side."""

    BETTER = "better"
    WORSE = "worse"
    SLIGHT = "not meaningful"
    OPEN = "not significant"


def criterion(interval: Bounds) -> Criterion:
    """Significant if the interval is on one side of one half, and meaningful if it reaches beyond
    `MEANINGFUL` there.
    """
    low, high = interval
    if low <= 0.5 <= high:
        return Criterion.OPEN
    if max(high, 1 - low) <= MEANINGFUL:
        return Criterion.SLIGHT
    return Criterion.BETTER if low > 0.5 else Criterion.WORSE


def p_better(x: Array, y: Array) -> float:
    """P(a run of x beats a run of y) for two arrays (seeds,): ties count half (Agarwal et al., 2021)."""
    return float((np.sign(x[:, None] - y[None, :]) + 1).mean() / 2)


def p_improvement(x: Sequence[Array], y: Sequence[Array]) -> tuple[float, Bounds | None]:
    """P(x beats y), the mean over settings, with its interval; None where a side has one run on a setting.

    It holds the values that a score test with Student's quantile would not reject. The variance of one
    setting is that of Newcombe (2006, method 5), at the mean of all: since it is concave in P, it is not
    below what settings of different P have. So the interval stays within [0, 1] and has a width where every
    run wins.
    """
    value = float(np.mean([p_better(a, b) for a, b in zip(x, y, strict=True)]))
    counts = [(len(a), len(b)) for a, b in zip(x, y, strict=True)]
    least = min(min(pair) for pair in counts)
    if least < 2:
        return value, None
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, 2 * least - 2))

    def rejected(p: float) -> bool:
        variance = sum(_newcombe(p, *pair) for pair in counts) / len(counts) ** 2
        return (value - p) ** 2 > quantile**2 * variance

    return value, (_edge(rejected, 0.0, value), _edge(rejected, 1.0, value))


def _newcombe(p: float, first: int, second: int) -> float:
    """Variance of the share of wins of so many runs over so many others."""
    others = (first + second) / 2 - 1
    return p * (1 - p) * (1 + others * (1 - p) / (2 - p) + others * p / (1 + p)) / (first * second)


def _edge(rejected: Callable[[float], bool], outer: float, inner: float) -> float:
    """Where between a value that may be rejected and one that is not the rejection begins."""
    while abs(outer - inner) > 1e-6:
        middle = (outer + inner) / 2
        if rejected(middle):
            outer = middle
        else:
            inner = middle
    return outer


def better_matrix(scores: Sequence[Sequence[Array]]) -> Array:
    """P(row beats column), the mean over settings, (methods, methods).

    `scores`: of each method, one array (seeds,) a setting.
    """
    methods = len(scores)
    matrix = np.full((methods, methods), 0.5)
    for i in range(methods):
        for j in range(i + 1, methods):
            matrix[i, j] = np.mean([p_better(a, b) for a, b in zip(scores[i], scores[j], strict=True)])
            matrix[j, i] = 1 - matrix[i, j]
    return matrix


def noether(p: float, power: float = 0.8, level: float = 0.05) -> int:
    """Runs of either method with which a true P(A > B) of `p` is found to be above one half (Noether,
    1987).
    """
    reach = float(stats.norm.ppf(1 - level) + stats.norm.ppf(power))
    return math.ceil((reach / (math.sqrt(6) * (p - 0.5))) ** 2)
