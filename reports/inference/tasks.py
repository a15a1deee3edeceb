"""Tests with tasks as the sample, for methods that have too few runs on each task.

They ask whether a method is better on other tasks of the same kind, and say nothing of another seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from tensorbench.reports.inference.effects import Verdict, Word
from tensorbench.reports.inference.intervals import LEVEL, Array

#: The smallest number of tasks. With five, no two-sided signed-rank test has a p value below .05.
LEAST_TASKS = 6
#: The smallest number of methods for Friedman's test.
LEAST_METHODS = 3


@dataclass(frozen=True)
class OverTasks:
    """A method's difference from the reference over tasks. Positive is better."""

    method: str
    #: The median difference, in units of the score, and the numbers of tasks on which it is positive.
    median: float
    ahead: int
    #: The p value of Wilcoxon's signed-rank test (two-sided), after Holm's correction over the methods.
    p: float
    verdict: Verdict


@dataclass(frozen=True)
class TaskTests:
    """The tests of a block with tasks as the sample."""

    tasks: int
    #: The mean rank of each method over tasks, the reference included. 1 is the best.
    ranks: Mapping[str, float]
    #: The p value of Friedman's test, and the smallest difference of two mean ranks that is significant
    #: (Nemenyi, 1963). None for fewer than `LEAST_METHODS` methods.
    friedman: float | None
    critical: float | None
    rows: tuple[OverTasks, ...]


def task_tests(scores: Mapping[str, Sequence[float]], reference: str, threshold: float) -> TaskTests | None:
    """Compares methods with a reference over tasks. Larger scores are better. None for too few tasks.

    *Better* and *worse*: the signed-rank test is significant after Holm's correction. *Equivalent*: it is
    not, and two one-sided signed-rank tests show that the difference is within the threshold, also after
    Holm's correction. Anything else is *inconclusive*. The critical difference is that of Demšar (2006).
    """
    values = {method: np.asarray(own, float) for method, own in scores.items()}
    tasks = len(values[reference])
    if tasks < LEAST_TASKS:
        return None
    differences = {method: own - values[reference] for method, own in values.items() if method != reference}
    tests = holm([_signed_rank(each, "two-sided") for each in differences.values()])
    within = holm(
        [
            max(_signed_rank(each - threshold, "less"), _signed_rank(each + threshold, "greater"))
            for each in differences.values()
        ]
    )
    ranks = stats.rankdata([-own for own in values.values()], axis=0)
    count = len(values)
    several = count >= LEAST_METHODS
    # All methods tie on all tasks, and nothing differs.
    tied = bool((ranks == ranks[0]).all())
    return TaskTests(
        tasks=tasks,
        ranks=dict(zip(values, ranks.mean(1).tolist(), strict=True)),
        friedman=(1.0 if tied else float(stats.friedmanchisquare(*values.values()).pvalue))
        if several
        else None,
        critical=critical_difference(count, tasks) if several else None,
        rows=tuple(
            OverTasks(method, float(np.median(own)), int((own > 0).sum()), p, Verdict(_word(own, p, inside)))
            for (method, own), p, inside in zip(differences.items(), tests, within, strict=True)
        ),
    )


def critical_difference(methods: int, tasks: int) -> float:
    """The smallest significant difference of two mean ranks, over all pairs of methods (Nemenyi, 1963)."""
    quantile = float(stats.studentized_range.ppf(LEVEL, methods, math.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * tasks))


def holm(values: Sequence[float]) -> list[float]:
    """The p values after Holm's correction (1979), in the given order."""
    adjusted, most = [0.0] * len(values), 0.0
    for place, number in enumerate(np.argsort(values)):
        most = max(most, min(1.0, (len(values) - place) * values[number]))
        adjusted[number] = most
    return adjusted


def _signed_rank(differences: Array, alternative: str) -> float:
    """The p value of Wilcoxon's signed-rank test. Zeros are ranked, then dropped (Pratt, 1959)."""
    if not differences.any():
        return 1.0
    # Differences of rounded scores tie, up to rounding errors of float64.
    rounded = np.round(differences, 9)
    return float(stats.wilcoxon(rounded, zero_method="pratt", alternative=alternative).pvalue)


def _word(differences: Array, p: float, within: float) -> Word:
    if p < 1 - LEVEL:
        return Word.BETTER if stats.rankdata(abs(differences)) @ np.sign(differences) > 0 else Word.WORSE
    return Word.EQUIVALENT if within < 1 - LEVEL else Word.INCONCLUSIVE
