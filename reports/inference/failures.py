"""The probability that a trial fails, estimated from all methods and tasks of a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

#: The smallest and the largest correlation of failures within a cell. Its estimate from few cells is poor, so
#: it is clipped to this range.
_CORRELATIONS = 0.02, 0.5
#: The variance due to failures is computed with this quantile of the probability of a failure.
_QUANTILE = 0.75


@dataclass(frozen=True)
class Failures:
    """The beta distribution over cells of the probability that a trial fails.

    The number of a cell's failed trials is then beta-binomial (Griffiths, 1973). A method without failed
    trials may still fail. The more often the other methods have failed, the more probable that is.
    """

    #: The mean probability over cells.
    mean: float
    #: The correlation of two trials of one cell.
    correlation: float
    #: The mean amount by which failed trials score below the best of their cell. None if no trial failed.
    fall: float | None

    def chance(self, failed: int, trials: int) -> tuple[float, float]:
        """The upper quartile and the variance of a cell's probability of failure.

        They belong to the posterior Beta(a + failed, b + trials - failed) after `failed` of `trials` trials
        failed, where a = mean (1/correlation - 1) and b = (1 - mean) (1/correlation - 1).
        """
        strength = 1 / self.correlation - 1
        a, b = self.mean * strength + failed, (1 - self.mean) * strength + trials - failed
        return float(special.betaincinv(a, b, _QUANTILE)), a * b / ((a + b) ** 2 * (a + b + 1))


def pooled(failed: Sequence[int], trials: Sequence[int], falls: Sequence[float]) -> Failures:
    """Estimates the failures of a block from the numbers of failed trials and of all trials in each cell.

    `falls` has the mean fall in score of each cell's failed trials; entries of cells without failures are
    ignored. Half a failure in one trial is added to the mean, so that it is never 0. The correlation is
    estimated by moments, from the variance of the cells' shares in excess of the binomial variance.
    """
    counts, sizes = np.asarray(failed, float), np.asarray(trials, float)
    mean, inverse = (counts.sum() + 0.5) / (sizes.sum() + 1), (1 / sizes).mean()
    binomial = mean * (1 - mean)
    spread = (counts / sizes).var(ddof=1) if len(counts) > 1 else 0.0
    correlation = (spread - binomial * inverse) / (binomial * (1 - inverse)) if inverse < 1 else 0.0
    fall = float(np.average(falls, weights=counts)) if counts.any() else None
    return Failures(float(mean), float(np.clip(correlation, *_CORRELATIONS)), fall)
