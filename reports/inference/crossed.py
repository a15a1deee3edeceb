"""Errors of a difference on one setting: seeds and test examples as crossed random effects, and tuning.

Seeds are a sample of all seeds, and test examples a sample of all examples; every seed answers the same
examples. The points chosen by tuning are a sample as well, on each setting separately.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import stats

from reports.inference.intervals import LEAST_SEEDS, Array, Error, welch

#: The number of simulated repetitions of a tuning, as a power of 2.
_LOG_DRAWS = 11


@dataclass(frozen=True)
class OnSetting:
    """The difference of two methods on one setting, and the variances of its error by source."""

    #: The number of seed pairs, or of studies. Without shared seeds, the number on the side with fewer.
    pairs: int
    #: The difference of the methods' means or estimates.
    difference: float
    #: The squared standard error over seeds. None for fewer than `LEAST_SEEDS` pairs, or too few trials.
    seeds: float | None
    #: The variance that test examples add. 0 if only seeds are known.
    examples: float = 0.0
    #: The variance that the tuning of both sides adds. 0 without tuning, or if unknown.
    tuning: float = 0.0
    #: The number of test examples. None if the analysis covers seeds only.
    count: int | None = None
    #: The degrees of freedom of `seeds`. None: the number of pairs minus one.
    freedom: float | None = None
    #: The mean difference of each example over seeds (examples,), and the identity of the test set.
    by_example: Array | None = field(default=None, repr=False)
    test_set: Any = None
    #: The typical size of scores, and the largest possible difference.
    size: float = 1.0
    limit: float = math.inf

    @property
    def error(self) -> Error | None:
        """The error of `difference`. None if `seeds` is None: too few pairs, or too few trials for k."""
        if self.seeds is None:
            return None
        freedom = self.pairs - 1 if self.freedom is None else self.freedom
        return Error(self.seeds, freedom, self.examples, self.tuning, self.size, self.limit)


def of_seeds(differences: Array) -> OnSetting:
    """The mean of paired differences (pairs,), with its error over seeds but not over test examples."""
    pairs = len(differences)
    seeds = float(np.var(differences, ddof=1)) / pairs if pairs >= LEAST_SEEDS else None
    return OnSetting(pairs, float(differences.mean()), seeds)


def of_seeds_and_examples(differences: Array, by_example: Array, test_set: Any = None) -> OnSetting:
    """Like `of_seeds`, with the error over test examples from each example's differences (pairs, examples).

    With mean squares of seeds S, examples E and the rest R, over n pairs and e examples, the variance of the
    mean is estimated by (S + E - R) / ne (Searle, Casella and McCulloch, 1992, chapter 4). S / ne is the
    squared standard error over seeds; (E - R) / ne, at least 0, is the part added by examples.
    """
    alone = of_seeds(differences)
    pairs, examples = by_example.shape
    if alone.seeds is None or examples < 2:
        return replace(alone, count=examples)
    of_example = by_example.mean(0)
    added = max(0.0, float(of_example.var(ddof=1) / examples - _noise(by_example)))
    return OnSetting(
        pairs=pairs,
        difference=alone.difference,
        seeds=alone.seeds,
        examples=added,
        count=examples,
        by_example=of_example,
        test_set=test_set,
    )


def of_groups(first: Array, second: Array) -> OnSetting:
    """The mean of `first` minus that of `second`, (seeds,) each, without shared seeds.

    The error is Welch's, over seeds only.
    """
    difference, fewer = float(first.mean() - second.mean()), min(len(first), len(second))
    if fewer < LEAST_SEEDS:
        return OnSetting(fewer, difference, None)
    variances = [float(np.var(side, ddof=1)) / len(side) for side in (first, second)]
    quarter, freedom = welch(variances, [len(first) - 1, len(second) - 1])
    # The variance of the difference, not of the mean of the two.
    return OnSetting(fewer, difference, 4 * quarter, freedom=freedom)


def of_groups_and_examples(first: Array, second: Array, tables: Sequence[Array]) -> OnSetting:
    """Like `of_groups`, with the error over test examples from each side's table (seeds, examples)."""
    alone = of_groups(first, second)
    examples = tables[0].shape[1]
    if alone.seeds is None or examples < 2:
        return replace(alone, count=examples)
    of_example = np.subtract(*(table.mean(0) for table in tables))
    added = float(of_example.var(ddof=1) / examples - sum(_noise(table) for table in tables))
    return replace(alone, examples=max(0.0, added), count=examples)


def _noise(by_example: Array) -> float:
    """R / ne as in `of_seeds_and_examples`: the mean's variance due to neither seeds nor examples.

    `by_example` is (seeds, examples).
    """
    seeds, examples = by_example.shape
    of_seed, of_example = by_example.mean(1), by_example.mean(0)
    rest = (
        np.einsum("se,se->", by_example, by_example)
        - examples * of_seed @ of_seed
        - seeds * of_example @ of_example
        + seeds * examples * by_example.mean() ** 2
    )
    return float(rest / ((seeds - 1) * (examples - 1)) / (seeds * examples))


def over_settings(parts: Sequence[OnSetting]) -> Error | None:
    """The error of the mean over settings. None if a setting has fewer than `LEAST_SEEDS` pairs.

    Settings with the same test set (on several backbones) share its examples, so their covariance is
    included.
    """
    errors = [part.error for part in parts]
    complete = [error for error in errors if error is not None]
    if len(complete) < len(errors):
        return None
    seeds, freedom = welch([error.seeds for error in complete], [error.freedom for error in complete])
    examples = sum(error.examples for error in complete)
    for i, part in enumerate(parts):
        for other in parts[i + 1 :]:
            if part.by_example is None or other.by_example is None or part.test_set != other.test_set:
                continue
            covariance = np.cov(part.by_example, other.by_example)[0, 1] / len(part.by_example)
            examples += 2 * float(covariance)
    examples, tuning = (
        max(0.0, added) / len(parts) ** 2 for added in (examples, sum(error.tuning for error in complete))
    )
    size, limit = max(part.size for part in parts), max(part.limit for part in parts)
    return Error(seeds, freedom, examples, tuning, size, limit)


def lottery(scores: Array, noise: Array) -> float:
    """The variance of the chosen point's score over repetitions of its tuning.

    Each repetition adds normal noise to the validation scores and chooses the best point again: a parametric
    bootstrap (Efron and Tibshirani, 1993, section 6.5). Measured scores replace the points' true ones. Their
    own noise spreads them, so the variance is rather too large, most of all for similar points.

    `scores` (points,) are validation scores; larger is better. `noise` (points, points) is the covariance of
    their errors; a common part cancels.
    """
    points, size = len(scores), float(np.trace(noise))
    if points < 2 or not size:
        return 0.0
    # Points with the same answers have a singular covariance.
    root = np.linalg.cholesky(noise + 1e-9 * size * np.eye(points))
    chosen = (scores + _draws(points) @ root.T).argmax(1)
    return float(scores[chosen].var())


@lru_cache
def _draws(points: int) -> Array:
    """Independent standard normal numbers (draws, points), the same in every call."""
    draws: Array = stats.qmc.MultivariateNormalQMC(np.zeros(points), rng=0).random(2**_LOG_DRAWS)
    return draws
