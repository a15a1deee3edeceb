"""The probability of each trial to be kept, if the best of k random trials is kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tensorbench.reports.inference.intervals import Array


def kept_weights(losses: Array, k: int, strata: NDArray[np.int64] | None = None) -> Array:
    """Each trial's probability (trials,) to be kept: to have the lowest loss of k randomly drawn trials.

    Without `strata`, every subset of k trials is equally likely. The trial with rank i of N (1 for the lowest
    loss) then has probability C(N - i, k - 1) / C(N, k).

    `strata` (trials,) numbers each trial's stratum from 0. Each study has one trial in each stratum, so plain
    subsets of trials would cover the window too evenly. Instead, each of the k draws falls into a random
    stratum, as a fresh rate would, and all trials of that stratum are equally likely.

    Trials with equal loss have equal probability. A loss of NaN counts as infinite. Raises ValueError unless
    1 <= k <= trials.
    """
    if not 1 <= k <= len(losses):
        raise ValueError(f"k: {k}, expected 1 to {len(losses)}, the number of trials")
    strata = np.zeros(len(losses), np.int64) if strata is None else strata
    ranked = np.where(np.isnan(losses), np.inf, losses)
    values, places, ties = np.unique(ranked, return_inverse=True, return_counts=True)
    members = np.zeros((len(values) + 1, strata.max() + 1))
    np.add.at(members, (places + 1, strata), 1)
    # Row v counts the trials in each stratum whose loss is among the v lowest values.
    avoided = _avoidance(members.cumsum(0), members.sum(0), k)
    weights: Array = (-np.diff(avoided) / ties)[places]
    return weights


def _avoidance(barred: Array, sizes: Array, k: int) -> Array:
    """The probability (cases,) that k randomly drawn trials include no barred trial.

    `barred` (cases, strata) and `sizes` (strata,) count the barred trials and all trials of each stratum. The
    numbers of trials drawn per stratum are multinomial, but no stratum gives more trials than it has. The
    probability is therefore a coefficient, at k, of a product of generating functions, one for each stratum.
    If b of a stratum's n trials are barred, j trials drawn from the stratum have the weight 1 / j!, and avoid
    the barred ones with probability C(n - b, j) / C(n, j).
    """
    drawn = np.arange(1, min(k, int(sizes.max())) + 1)
    left = sizes[:, None] - drawn + 1
    free = (left - barred[:, :, None]).clip(0)
    # The scale keeps coefficients near 1 for any k and cancels out.
    steps = free / np.maximum(left, 1) * (k / (np.e * len(sizes)) / drawn)
    coefficients = np.cumprod(np.concatenate([np.ones((*barred.shape, 1)), steps], axis=2), axis=2)
    # All terms are positive, so that multiplying them out loses no digits, for any k.
    product = np.eye(1, k + 1).repeat(len(barred), axis=0)
    for factor in coefficients.swapaxes(0, 1):
        before, product = product, np.zeros_like(product)
        for power in range(factor.shape[1]):
            product[:, power:] += factor[:, power, None] * before[:, : k + 1 - power]
    avoided: Array = product[:, k] / product[0, k]
    return avoided
