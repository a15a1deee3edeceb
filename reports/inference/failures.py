"""The chance that a trial fails, learnt from all methods and tasks of a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

#: The smallest and the largest correlation of failures within a cell. With a few cells its estimate is poor.
_CORRELATIONS = 0.02, 0.5
#: The variance due to failures is computed with this quantile of the chance of a failure.
_QUANTILE = 0.75


@dataclass(frozen=True)
class Failures:
    """The distribution over cells of the chance that a trial fails: a beta distribution.

    A cell's failed trials are then beta-binomial (Griffiths, 1973). A method that has not failed in the
    trials seen may still fail, and how probable that is depends on how often its like have failed.
    """

    #: The mean chance over cells.
    mean: float
    #: The correlation of two trials of one cell.
    correlation: float
    #: The mean amount by which failed trials score below the best of their cell. None if no trial failed.
    fall: float | None

    def chance(self, failed: int, trials: int) -> tuple[float, float]:
        """The upper quartile and the variance of the chance in a cell in which `failed` trials have failed.

        They are those of the posterior Beta(a + failed, b + trials - failed), where
        a = mean (1/correlation - 1) and b = (1 - mean) (1/correlation - 1).
        """
        strength = 1 / self.correlation - 1
        a, b = self.mean * strength + failed, (1 - self.mean) * strength + trials - failed
        return float(special.betaincinv(a, b, _QUANTILE)), a * b / ((a + b) ** 2 * (a + b + 1))


def pooled(failed: Sequence[int], trials: Sequence[int], falls: Sequence[float]) -> Failures:
    """The failures of a block, from the counts of failed and of all trials in each cell.

    `falls` has the mean fall of each cell's failed trials, and is not read where none failed. The mean has
    half a failure in one trial added, so that it is never 0. The correlation is estimated by moments: the
    variance of the cells' shares beyond the binomial one.
    """
    counts, sizes = np.asarray(failed, float), np.asarray(trials, float)
    mean, inverse = (counts.sum() + 0.5) / (sizes.sum() + 1), (1 / sizes).mean()
    binomial = mean * (1 - mean)
    spread = (counts / sizes).var(ddof=1) if len(counts) > 1 else 0.0
    correlation = (spread - binomial * inverse) / (binomial * (1 - inverse)) if inverse < 1 else 0.0
    fall = float(np.average(falls, weights=counts)) if counts.any() else None
    return Failures(float(mean), float(np.clip(correlation, *_CORRELATIONS)), fall)
