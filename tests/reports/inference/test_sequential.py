"""Levels that hold at every look, against published boundaries and simulated t statistics."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tensorbench.reports.inference.intervals import simultaneous
from tensorbench.reports.inference.sequential import (
    SPENDING,
    Looks,
    critical_probabilities,
    critical_values,
    error_probability,
)

#: Two-sided constants at .05 for K equal looks (Jennison and Turnbull, 2000, tables 2.1 and 2.3).
POCOCK = {1: 1.960, 2: 2.178, 3: 2.289, 4: 2.361, 5: 2.413, 8: 2.512, 10: 2.555}
OBRIEN_FLEMING = {1: 1.960, 2: 1.977, 3: 2.004, 4: 2.024, 5: 2.040, 8: 2.072, 10: 2.087}


@pytest.mark.parametrize("looks", POCOCK)
def test_published_boundaries_err_as_published(looks: int) -> None:
    after = range(1, looks + 1)
    assert error_probability([POCOCK[looks]] * looks, after) == pytest.approx(0.05, abs=1.5e-4)
    falling = [OBRIEN_FLEMING[looks] * (looks / number) ** 0.5 for number in after]
    assert error_probability(falling, after) == pytest.approx(0.05, abs=1.5e-4)


@pytest.mark.parametrize(
    ("spending", "published"),
    [
        # Five equal looks at two-sided .05, as ldbounds prints them.
        ("obrien-fleming", [4.8769, 3.3570, 2.6803, 2.2898, 2.0310]),
        ("pocock", [2.4380, 2.4268, 2.4101, 2.3966, 2.3860]),
    ],
)
def test_spending_gives_published_boundaries(spending: str, published: list[float]) -> None:
    assert critical_values(range(1, 6), 0.05, spending) == pytest.approx(published, abs=2e-4)


def test_linear_spending_agrees_with_the_joint_normal_distribution() -> None:
    after = np.array([3, 5, 8])
    values = np.array(critical_values(tuple(after), 0.05, "linear"))
    assert values == pytest.approx([2.350, 2.347, 2.187], abs=1.2e-3)
    joint = np.sqrt(np.minimum.outer(after, after) / np.maximum.outer(after, after))
    spent = []
    for looks in (1, 2, 3):
        normal = stats.multivariate_normal(cov=joint[:looks, :looks], allow_singular=False, seed=0)
        spent.append(1 - normal.cdf(values[:looks], lower_limit=-values[:looks]))
    assert spent == pytest.approx(0.05 * after / 8, abs=2e-5)


@pytest.mark.parametrize("spending", SPENDING)
@pytest.mark.parametrize(
    ("after", "alpha"), [((3, 5, 8), 0.05), ((3, 5, 8), 0.0073), ((3, 4, 5, 6, 8), 0.05)]
)
def test_t_statistics_err_as_often_as_stated(after: tuple[int, ...], alpha: float, spending: str) -> None:
    draws = 100_000
    values = np.random.default_rng(0).normal(size=(draws, after[-1]))
    wrong = np.zeros(draws, bool)
    for n, probability in zip(after, critical_probabilities(after, alpha, spending), strict=True):
        own = values[:, :n]
        t = own.mean(1) / (own.std(1, ddof=1) / np.sqrt(n))
        wrong |= np.abs(t) > stats.t.ppf(1 - probability / 2, n - 1)
    four_errors = 4 * (alpha / draws) ** 0.5
    assert wrong.mean() == pytest.approx(alpha, abs=four_errors)


def test_levels_hold_over_looks_and_comparisons() -> None:
    looks = Looks((3, 5, 8), "linear")
    # Each look is stricter than no look, and less strict than splitting the error over the looks.
    for claims in (1, 7):
        levels = [looks.level(claims, runs) for runs in (3, 5, 8)]
        assert min(levels) > simultaneous(claims)
        assert sum(1 - each for each in levels) > 1 - simultaneous(claims)
        assert levels[0] > levels[2]
        # Between looks, the earlier one counts.
        assert [looks.level(claims, runs) for runs in (2, 4, 7)] == [levels[0], levels[0], levels[1]]


def test_a_single_look_spends_everything() -> None:
    assert Looks((8,), "linear").level(3, 8) == pytest.approx(simultaneous(3), abs=1e-4)
