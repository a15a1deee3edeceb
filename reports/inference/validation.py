"""The error of scores that is due to the validation sample, by which trials of all studies are chosen."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import special

from tensorbench.reports.inference.intervals import Array

#: F(x) below is interpolated between this many losses around each trial's loss, which extend this many
#: standard errors to either side.
_POINTS, _REACH = 41, 5
#: The number of nodes of the Gauss-Hermite quadrature of the integral below.
_NODES = 7


def influences(losses: Array, scores: Array, by_example: Array, validation: int) -> Callable[[int], Array]:
    """The influence (studies, examples) of validation examples on the score after k trials, split by study.

    Returns the influence as a function of k, the number of trials of which one is kept.

    The examples in `by_example` are used in place of validation examples. Trial i has the score y_i. Its
    validation loss is a mean over `validation` examples, with a standard error e_i. Let f_i(x) be the normal
    density with mean losses[i] and standard deviation e_i, and F(x) the mean over trials of the probability
    that a loss exceeds x. Of k losses of the N trials, the lowest two are those of trials i and j, and tie,
    with density

        a_ij = k (k - 1) / N² ∫ f_i(x) f_j(x) F(x)^(k - 2) dx

    At such a tie, the score changes by y_i - y_j if trial i is kept instead of trial j. The influence of an
    example on which trial i has the loss h_i is the sum over pairs of a_ij (y_i - y_j) (h_j - h_i). This is
    the linear term of the score's expansion in the errors of the losses (the first term of the tetrachoric
    series). Trials of different studies share these errors, and no other term matters for the variance.

    The influence is split among the n trials as a U-statistic of degree two is split into its projections:
    the part of trial i is the sum over all pairs with i, less 1/n of the influence. The parts sum to the
    influence. Those of diverged trials are zero, and n does not count them. A study has the parts of its
    trials.

    Args:
        losses: Validation losses (studies, points). Those of diverged trials are infinite.
        scores: Test scores (studies, points).
        by_example: Each trial's loss on each example of a sample (studies, points, examples), such as the
            test set.
        validation: The number of validation examples.
    """
    trials, shape = losses.size, (len(losses), by_example.shape[-1])
    lasting = np.isfinite(losses)
    if lasting.sum() < 2:
        return lambda k: np.zeros(shape)
    means, values = losses[lasting], scores[lasting]
    #: Which of these trials are of each study (studies, trials).
    own = np.arange(len(losses))[:, None] == lasting.nonzero()[0]
    off = by_example[lasting] - by_example[lasting].mean(1, keepdims=True)
    # The error that all trials have in common changes no choice. The median ignores trials whose losses
    # exploded.
    off = off - np.median(off, axis=0)
    errors = np.sqrt((off**2).mean(1) * len(off) / (len(off) - 1) / validation)
    if not errors.max():
        return lambda k: np.zeros(shape)
    errors = np.maximum(errors, 1e-6 * errors.max())
    grid = np.unique(means + errors * np.linspace(-_REACH, _REACH, _POINTS)[:, None])
    beyond = 1 - special.ndtr((grid[:, None] - means) / errors).sum(1) / trials
    # The product of two normal densities is a normal density in x, times one in the difference of the means.
    squares = errors**2
    both = np.add.outer(squares, squares)
    middle = (np.outer(means, squares) + np.outer(squares, means)) / both
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    within = middle[:, :, None] + np.sqrt(np.outer(squares, squares) / both)[:, :, None] * nodes
    chances = np.interp(within, grid, beyond)
    ties = np.exp(-(np.subtract.outer(means, means) ** 2) / both / 2) / np.sqrt(2 * math.pi * both)

    def after(k: int) -> Array:
        if k == 1:
            return np.zeros(shape)
        rest = chances ** (k - 2) @ (weights / weights.sum())
        changes = k * (k - 1) / trials**2 * (ties * rest) * np.subtract.outer(values, values).T
        parts = np.diag(changes.sum(1)) - changes
        parts -= parts.sum(0) / 2 / len(off)
        # Not `@`: for a product of this size, BLAS wakes threads that then spin for longer than it takes.
        return np.einsum("st,te->se", own @ parts, off)

    return after
