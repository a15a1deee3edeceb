"""The error of a difference between two methods on one setting, from seeds and test examples.

Seeds are a sample of all seeds, and test examples a sample of all examples. The two are crossed random
effects, since every seed answers the same examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tensorbench.reports.inference.intervals import LEAST_SEEDS, Array, Error, welch
from tensorbench.reports.inference.sequential import Looks


@dataclass(frozen=True)
class OnSetting:
    """A difference between two methods on one setting, and the variance of its error from each source.

    The score of a single method is represented in the same way.
    """

    #: The number of seed pairs, or of paired studies. For methods that share no seeds, the smaller of their
    #: two numbers of seeds.
    pairs: int
    #: The difference between the methods' means or estimates.
    difference: float
    #: The squared standard error over seeds. None if there are fewer than `LEAST_SEEDS` pairs, or too few
    #: trials for the score after k trials.
    seeds: float | None
    #: The variance that failed trials add.
    failures: float = 0.0
    #: The variance that test examples add. 0 if the analysis covers seeds only.
    examples: float = 0.0
    #: The variance that the choice by one validation sample adds. None if it is unknown.
    validation: float | None = 0.0
    #: The number of test examples. None if the analysis covers seeds only.
    count: int | None = None
    #: The degrees of freedom of `seeds`. None means the number of pairs minus one.
    freedom: float | None = None
    #: The differences or pseudo-values whose variance `seeds` is, by seed or study.
    by_seed: Mapping[int, float] = field(default_factory=dict, repr=False)
    #: Each example's difference between the methods, averaged over seeds (examples,).
    by_example: Array | None = field(default=None, repr=False)
    #: The identity of the test set. Settings with equal identities share their test examples.
    test_set: Any = None
    #: The typical size of scores.
    size: float = 1.0
    #: The largest possible difference between two scores.
    limit: float = math.inf
    #: The looks of the sequential experiment that gave the pairs. None if their number was fixed.
    looks: Looks | None = None

    @property
    def error(self) -> Error | None:
        """The error of `difference`. None if `seeds` is None."""
        if self.seeds is None:
            return None
        freedom = self.pairs - 1 if self.freedom is None else self.freedom
        known = self.examples + (self.validation or 0.0)
        return Error(self.seeds + self.failures, freedom, known, self.size, self.limit)


def of_seeds(differences: Array) -> OnSetting:
    """The mean of paired differences (pairs,). Its error covers seeds but not test examples."""
    pairs = len(differences)
    seeds = float(np.var(differences, ddof=1)) / pairs if pairs >= LEAST_SEEDS else None
    by_seed = dict(enumerate(differences.tolist()))
    return OnSetting(pairs, float(differences.mean()), seeds, by_seed=by_seed)


def of_seeds_and_examples(differences: Array, by_example: Array, test_set: Any = None) -> OnSetting:
    """Like `of_seeds`, but the error covers test examples too.

    `by_example` (pairs, examples) splits each pair's difference into the differences of single examples.

    With mean squares S of seeds, E of examples and R of the residual, over n pairs and e examples, the
    variance of the mean is estimated by (S + E - R) / ne (Searle, Casella and McCulloch, 1992, chapter 4).
    Its first term S / ne is the squared standard error over seeds. The rest (E - R) / ne, at least 0, is the
    variance that examples add.
    """
    alone, examples = of_seeds(differences), by_example.shape[1]
    if alone.seeds is None or examples < 2:
        return replace(alone, count=examples)
    return replace(
        alone,
        examples=of_examples(by_example),
        count=examples,
        by_example=by_example.mean(0),
        test_set=test_set,
    )


def of_examples(by_example: Array) -> float:
    """The variance (E - R) / ne that examples add to the mean of `by_example` (seeds, examples).

    The formula is explained at `of_seeds_and_examples`. The residual is the part that neither seeds nor
    examples explain. The result is at least 0.
    """
    seeds, examples = by_example.shape
    of_seed, of_example = by_example.mean(1), by_example.mean(0)
    rest = (
        np.einsum("se,se->", by_example, by_example)
        - examples * of_seed @ of_seed
        - seeds * of_example @ of_example
        + seeds * examples * by_example.mean() ** 2
    )
    residual = rest / ((seeds - 1) * (examples - 1)) / (seeds * examples)
    return max(0.0, float(of_example.var(ddof=1) / examples - residual))


def over_settings(parts: Sequence[OnSetting]) -> Error | None:
    """The error of the mean over settings. None if the error on any setting is unknown.

    Settings may share a test set, for example if one task runs on two backbones. Their errors are then
    correlated, and the covariance is included. The covariance due to a shared validation sample is small and
    not included.
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
    examples = max(0.0, examples) / len(parts) ** 2
    size, limit = max(part.size for part in parts), max(part.limit for part in parts)
    return Error(seeds, freedom, examples, size, limit)
