"""Tests the variance from tuning against hand-computed sums, and intervals that include this variance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tensorbench.reports.inference.crossed import OnSetting, lottery
from tensorbench.reports.inference.effects import effect
from tensorbench.reports.inference.intervals import LEVEL, Array
from tools.benchmarks.coverage import Tuning, retuned


@pytest.mark.parametrize("gap", [0.0, 0.01, 0.03, 0.05])
def test_the_lottery_of_two_points_has_binomial_variance(gap: float) -> None:
    # The better point is chosen if a difference with standard deviation .02 √2 has its sign.
    better = stats.norm.cdf(gap / (0.02 * 2**0.5))
    variance = lottery(np.array([0.7, 0.7 + gap]), 0.02**2 * np.eye(2))
    assert variance == pytest.approx(better * (1 - better) * gap**2, rel=0.05, abs=2e-6)


def test_noise_shared_by_all_points_cancels() -> None:
    scores, own = np.array([0.7, 0.71, 0.69]), 0.02**2 * np.eye(3)
    assert lottery(scores, own + 0.03**2) == pytest.approx(lottery(scores, own), rel=0.05)


def test_points_that_never_win_add_nothing() -> None:
    close = np.array([0.7, 0.71, 0.69])
    more = lottery(np.append(close, [0.3, 0.2]), 0.02**2 * np.eye(5))
    assert more == pytest.approx(lottery(close, 0.02**2 * np.eye(3)), rel=0.05)


@pytest.mark.parametrize(
    ("scores", "noise"), [([0.7], np.eye(1)), ([0.7, 0.8], np.zeros((2, 2))), ([0.7, 0.8], np.ones((2, 2)))]
)
def test_a_certain_choice_has_no_lottery(scores: list[float], noise: Array) -> None:
    assert lottery(np.array(scores), noise) == pytest.approx(0, abs=1e-12)


def test_the_lottery_is_the_same_every_time() -> None:
    scores, noise = np.linspace(0.6, 0.7, 8), 0.03**2 * np.eye(8)
    assert lottery(scores, noise) == lottery(scores, noise) > 0


def test_an_interval_includes_tuning_beside_seeds_and_examples() -> None:
    part = OnSetting(5, 0.01, seeds=4e-5, examples=1e-5, tuning=9e-5)
    single, four = effect([part]), effect([part] * 4)
    t, normal = stats.t.ppf(0.975, 4), stats.norm.ppf(0.975)
    half = (t**2 * 4e-5 + normal**2 * 10e-5) ** 0.5
    assert single.interval(LEVEL) == pytest.approx((0.01 - half, 0.01 + half))
    half = (t**2 * 4e-5 + normal**2 * 1e-5) ** 0.5
    assert single.at_chosen_points(LEVEL) == pytest.approx((0.01 - half, 0.01 + half))
    # Each task is tuned separately.
    assert four.error is not None
    assert four.error.tuning == pytest.approx(9e-5 / 4)


def test_tuning_noise_does_not_replace_unknown_noise() -> None:
    assert effect([OnSetting(5, 0.01, seeds=0.0, tuning=9e-5)]).interval(LEVEL) is None


@pytest.mark.parametrize("tasks", [1, 4])
def test_intervals_hold_of_methods_that_are_tuned_again(tasks: int) -> None:
    coverage, without, _ = retuned(Tuning(tasks), np.random.default_rng(0), 250)
    assert coverage > 0.9
    assert without < 0.75
