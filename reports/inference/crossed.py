"""Seeds and test examples as crossed random effects: how far a difference on one setting is from the truth.

Seeds are a sample of all seeds, and the test examples one of all examples; every seed answers the same
examples. Where methods were tuned, the points that were chosen are a sample too, on each setting for itself.
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

#: A tuning is repeated 2 to the power of so many times.
_LOG_DRAWS = 11


@dataclass(frozen=True)
class OnSetting:
    """The paired differences of two methods on one setting."""

    pairs: int
    #: Mean over the pairs.
    difference: float
    #: Squared standard error over seeds; None of fewer than `LEAST_SEEDS` pairs.
    seeds: float | None
    #: What the test examples add to it; 0 where only seeds are known.
    examples: float = 0.0
    #: What the tuning of both sides adds to it; 0 where nothing was chosen, or nothing is known of that.
    tuning: float = 0.0
    #: How many test examples are behind it; None where the analysis is of seeds alone.
    count: int | None = None
    #: Degrees of freedom of `seeds`, where they are not those of the pairs.
    freedom: float | None = None
    #: Each example's difference (examples,), mean over seeds, and what tells their test set from others.
    by_example: Array | None = field(default=None, repr=False)
    test_set: Any = None
    #: What scores are large or small beside, and the largest difference that two of them can have.
    size: float = 1.0
    limit: float = math.inf

    @property
    def error(self) -> Error | None:
        """None of fewer than `LEAST_SEEDS` pairs."""
        if self.seeds is None:
            return None
        freedom = self.pairs - 1 if self.freedom is None else self.freedom
        return Error(self.seeds, freedom, self.examples, self.tuning, self.size, self.limit)


def of_seeds(differences: Array) -> OnSetting:
    """The differences (pairs,) by themselves: as if the test examples were all that there are."""
    pairs = len(differences)
    seeds = float(np.var(differences, ddof=1)) / pairs if pairs >= LEAST_SEEDS else None
    return OnSetting(pairs, float(differences.mean()), seeds)


def of_seeds_and_examples(differences: Array, by_example: Array, test_set: Any = None) -> OnSetting:
    """The differences (pairs,) with those of each example, (pairs, examples).

    With mean squares of seeds S, examples E and the rest R, over n pairs and e examples, the variance of the
    mean is estimated by (S + E - R) / ne (Searle, Casella and McCulloch, 1992, chapter 4): S / ne is the
    squared standard error over seeds, (E - R) / ne what the examples add to it, never less than nothing.
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


def of_groups(one: Array, other: Array) -> OnSetting:
    """Scores (seeds,) of two sides that share no seed: the first less the second, of seeds alone (Welch)."""
    difference, fewer = float(one.mean() - other.mean()), min(len(one), len(other))
    if fewer < LEAST_SEEDS:
        return OnSetting(fewer, difference, None)
    variances = [float(np.var(side, ddof=1)) / len(side) for side in (one, other)]
    quarter, freedom = welch(variances, [len(one) - 1, len(other) - 1])
    # Of the difference, and not of the mean of the two.
    return OnSetting(fewer, difference, 4 * quarter, freedom=freedom)


def of_groups_and_examples(one: Array, other: Array, tables: Sequence[Array]) -> OnSetting:
    """The same with those of each example of either side, (seeds, examples), on the same examples."""
    alone = of_groups(one, other)
    examples = tables[0].shape[1]
    if alone.seeds is None or examples < 2:
        return replace(alone, count=examples)
    of_example = np.subtract(*(table.mean(0) for table in tables))
    added = float(of_example.var(ddof=1) / examples - sum(_noise(table) for table in tables))
    return replace(alone, examples=max(0.0, added), count=examples)


def _noise(by_example: Array) -> float:
    """R / ne: what neither seeds nor examples explain of (seeds, examples), in the mean over both."""
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
    """The error of the mean over settings; None where a setting has fewer than `LEAST_SEEDS`
    pairs.

    Settings of one test set, which several backbones have, share its examples: their covariance counts too.
    """
    errors = [part.error for part in parts]
    known = [error for error in errors if error is not None]
    if len(known) < len(errors):
        return None
    seeds, freedom = welch([error.seeds for error in known], [error.freedom for error in known])
    examples = sum(error.examples for error in known)
    for i, one in enumerate(parts):
        for other in parts[i + 1 :]:
            if one.by_example is None or other.by_example is None or one.test_set != other.test_set:
                continue
            together = np.cov(one.by_example, other.by_example)[0, 1] / len(one.by_example)
            examples += 2 * float(together)
    examples, tuning = (
        max(0.0, added) / len(parts) ** 2 for added in (examples, sum(error.tuning for error in known))
    )
    size, limit = max(part.size for part in parts), max(part.limit for part in parts)
    return Error(seeds, freedom, examples, tuning, size, limit)


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
