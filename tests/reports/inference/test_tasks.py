"""Tests the comparison over tasks against published figures and small cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tensorbench.reports.inference.effects import Word
from tensorbench.reports.inference.tasks import critical_difference, holm, task_tests


@pytest.mark.parametrize(
    ("methods", "tasks", "critical"),
    # Demšar (2006): page 16, and table 5a times the root of k (k + 1) / 6N.
    [(4, 14, 1.25), (2, 10, 1.960 * (1 / 10) ** 0.5), (10, 30, 3.164 * (110 / 180) ** 0.5)],
)
def test_the_critical_difference_is_that_of_the_paper(methods: int, tasks: int, critical: float) -> None:
    assert critical_difference(methods, tasks) == pytest.approx(critical, abs=0.005)


def test_holm_multiplies_the_smallest_most_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_verdicts_over_tasks() -> None:
    rng = np.random.default_rng(0)
    level = rng.uniform(0.3, 0.9, 20)
    noise = {name: rng.normal(0, 0.003, 20) for name in "LABCD"}
    gains = {"L": 0.0, "A": 0.03, "B": -0.03, "C": 0.0, "D": 0.0}
    scores = {name: level + gain + noise[name] for name, gain in gains.items()}
    scores["D"] = scores["L"] + rng.normal(0, 0.05, 20)
    tests = task_tests({name: own.tolist() for name, own in scores.items()}, "L", 0.01)
    assert tests is not None
    words = {row.method: row.verdict.word for row in tests.rows}
    assert words == {"A": Word.BETTER, "B": Word.WORSE, "C": Word.EQUIVALENT, "D": Word.INCONCLUSIVE}
    assert tests.ranks["A"] < tests.ranks["L"] < tests.ranks["B"]
    plain = {name: stats.wilcoxon(scores[name] - scores["L"]).pvalue for name in "ABCD"}
    assert [row.p for row in tests.rows] == pytest.approx(holm([*plain.values()]), rel=0.01)
    assert tests.friedman == pytest.approx(stats.friedmanchisquare(*scores.values()).pvalue)


def test_equal_methods_and_few_tasks() -> None:
    tests = task_tests({"L": [0.5] * 8, "A": [0.5] * 8, "B": [0.5] * 8}, "L", 0.01)
    assert tests is not None
    assert tests.friedman == 1
    assert {row.verdict.word for row in tests.rows} == {Word.EQUIVALENT}
    two = task_tests({"L": [0.1] * 6, "A": [0.5] * 6}, "L", 0.01)
    assert two is not None
    assert (two.friedman, two.critical) == (None, None)
    assert task_tests({"L": [0.1] * 5, "A": [0.5] * 5}, "L", 0.01) is None


def test_equal_methods_are_told_apart_in_at_most_a_twentieth_of_tables() -> None:
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(200):
        level = rng.uniform(0.3, 0.9, 12)
        scores = {name: (level + rng.normal(0, 0.02, 12)).tolist() for name in "LABC"}
        tests = task_tests(scores, "L", 0.01)
        assert tests is not None
        wrong += any(row.verdict.side for row in tests.rows)
    assert wrong <= 18
