"""The tuning lottery: how much a score owes to the point that its tuning happened to choose."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import stats

from reports.inference.intervals import Array

#: A tuning is repeated 2 to the power of so many times.
_LOG_DRAWS = 11


def lottery(scores: Array, noise: Array) -> float:
    """The variance of the chosen point's score over repetitions of its tuning.

    Each repetition adds normal noise to the validation scores and chooses the best point anew: a parametric
    bootstrap (Efron and Tibshirani, 1993, section 6.5). The scores that are there stand for the points' true
    ones. They are farther apart than those, by their own noise, so that the variance is rather too large,
    most of all where points hardly differ.

    `scores` (points,): validation scores, more being better. `noise` (points, points): the covariance of
    their errors; what all points share cancels.
    """
    points, size = len(scores), float(np.trace(noise))
    if points < 2 or not size:
        return 0.0
    # Points that answer alike have a singular covariance.
    root = np.linalg.cholesky(noise + 1e-9 * size * np.eye(points))
    chosen = (scores + _draws(points) @ root.T).argmax(1)
    return float(scores[chosen].var())


@lru_cache
def _draws(points: int) -> Array:
    """Independent standard normal numbers (draws, points), the same every time."""
    draws: Array = stats.qmc.MultivariateNormalQMC(np.zeros(points), rng=0).random(2**_LOG_DRAWS)
    return draws
