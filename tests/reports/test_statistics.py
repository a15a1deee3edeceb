"""Figures against published examples, against sums done by hand, and against simulated truth."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import matthews_corrcoef

from reports import statistics
from reports.statistics import Array


def array(*values: float) -> Array:
    return np.array(values, dtype=float)


#: Darwin's maize, crossed minus self-fertilised, in eighths of an inch.
DARWIN = array(49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48)


def effect(differences: Sequence[Array]) -> statistics.Effect:
    return statistics.effects([differences])[0]


# --- published examples ---


def test_sign_flips_give_fishers_p_for_darwins_maize() -> None:
    # Fisher, The Design of Experiments (1935), §21: 863 of 32,768 flips reach the sum, on one side.
    assert effect([DARWIN]).p == pytest.approx(2 * 863 / 32768)


def test_the_paired_interval_is_fishers_too() -> None:
    found = effect([DARWIN])
    assert found.interval is not None
    # t = 2.148 on 14 degrees of freedom; the interval in inches is 0.0039 to 5.2294.
    assert found.difference / 8 == pytest.approx(2.6167, abs=1e-4)
    assert [bound / 8 for bound in found.interval] == pytest.approx([0.0039, 5.2294], abs=1e-3)


def test_holm_corrects_as_in_the_textbook() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([]) == []


def test_p_better_is_the_tortoises_share_of_wins() -> None:
    # Mann and Whitney's U of Aesop's race, T H H H H H T T T T T H: the hares win 25 of 36 pairs.
    finish = "THHHHHTTTTTH"
    place = {animal: array(*(-i for i, who in enumerate(finish) if who == animal)) for animal in "TH"}
    assert statistics.p_better(place["H"], place["T"]) == pytest.approx(25 / 36)
    assert statistics.p_better(place["T"], place["H"]) == pytest.approx(11 / 36)


def test_the_interquartile_mean_is_that_of_the_textbook() -> None:
    assert statistics.interquartile_mean(array(5, 8, 4, 38, 8, 6, 9, 7, 7, 3, 1, 6)) == 6.5


# --- by hand ---


def test_interval_of_a_mean() -> None:
    # t(.975, 4) = 2.7764; sd 1, five values.
    assert statistics.t_half(array(1.0), array(5.0)) == pytest.approx([2.776445 / 5**0.5])
    assert np.isnan(statistics.t_half(array(nan), array(nan)))


def test_every_setting_weighs_the_same_however_many_seeds_it_has() -> None:
    found = effect([array(1, 3), array(0, 0, 0, 0)])
    assert found.difference == 1
    assert (found.settings, found.pairs) == (2, 6)
    # Of 64 flips: those of the two that count; |mean| ≥ 1 needs both of one sign, half of them.
    assert found.p == 0.5


def test_differences_of_one_sign_reach_the_smallest_p() -> None:
    for pairs in (2, 5, 15):
        values = np.arange(1.0, pairs + 1)
        assert effect([values]).p == pytest.approx(statistics.smallest_p(pairs))
    assert statistics.smallest_p(5) == 0.0625
    assert effect([np.arange(1.0, 11.0), np.arange(1.0, 11.0)]).p == pytest.approx(2e-4)


def test_the_interval_over_settings_is_welchs() -> None:
    first, second = array(1, 2, 3), array(10, 14, 18)
    found = effect([first, second])
    # Variances of the means 1/3 and 16/3: error √(17/3)/2; df (17/3)² / ((1/9 + 256/9)/2) = 578/257.
    half = stats.t.ppf(0.975, 578 / 257) * (17 / 3) ** 0.5 / 2
    assert found.interval == pytest.approx((8 - half, 8 + half))


def test_hedges_g_is_corrected_and_its_interval_inverts_the_noncentral_t() -> None:
    found = effect([DARWIN])
    assert found.g is not None
    assert found.g_interval is not None
    d = DARWIN.mean() / DARWIN.std(ddof=1)
    correction = 1 - 3 / (4 * 14 - 1)
    assert found.g == pytest.approx(correction * d)
    for bound, level in zip(found.g_interval, (0.975, 0.025), strict=True):
        centre = bound / correction * 15**0.5
        assert stats.nct.cdf(d * 15**0.5, 14, centre) == pytest.approx(level, abs=1e-6)


@pytest.mark.parametrize(
    "differences", [[array(0.1, 0.1, 0.1)], [array(0.3)], [array(1, 2)], [array(0.1 + 0.2, 0.3)]]
)
def test_what_has_no_standard_effect_has_none(differences: list[Array]) -> None:
    found = effect(differences)
    assert (found.g, found.g_interval) == (None, None)


def test_an_effect_far_from_zero_still_has_an_interval() -> None:
    found = effect([array(0.100, 0.101, 0.102), array(0.1, 0.101, 0.102)])
    assert found.g is not None
    assert found.g_interval is not None
    assert 0 < found.g_interval[0] < found.g < found.g_interval[1]


def test_one_seed_has_no_interval_of_any_kind() -> None:
    assert effect([array(0.3), array(0.1)]).interval is None
    assert statistics.p_improvement([array(1)], [array(0)]) == (1.0, None)
    assert statistics.ranks([array(1, 2)[:, None]]).low is None
    assert statistics.aggregate([array(0.5)], [0], [1]).mean_interval is None


def test_ranks_count_from_the_best_and_share_ties() -> None:
    scores = [np.array([[3, 3], [1, 1], [2, 2.0]]), np.array([[5, 5], [5, 5], [0, 0.0]])]
    scores = [np.repeat(values, 3, axis=1) for values in scores]
    found = statistics.ranks(scores)
    assert list(found.mean) == [1.25, 2.25, 2.5]
    assert found.low is not None
    assert found.high is not None
    assert list(found.low) == list(found.high) == [1.25, 2.25, 2.5]


def test_rank_intervals_reach_as_far_as_resampled_seeds_do() -> None:
    # Whether the seed that differs is drawn decides.
    found = statistics.ranks([np.array([[6.0, 0, 0, 0, 0], [1.0, 1, 1, 1, 1]])])
    assert found.low is not None
    assert found.high is not None
    assert (list(found.low), list(found.high)) == ([1, 1], [2, 2])


def test_the_matrix_of_p_better_agrees_with_each_pair_and_counts_ties_half() -> None:
    scores = [np.array([[1, 2, 3], [2, 2, 2], [0, 0, 9.0]]), np.array([[1, 1, 1], [1, 1, 1], [0, 2, 3.0]])]
    matrix = statistics.better_matrix(scores)
    for i in range(3):
        for j in range(3):
            pairs = [statistics.p_better(values[i], values[j]) for values in scores]
            assert matrix[i, j] == pytest.approx(np.mean(pairs))
    assert np.allclose(matrix + matrix.T, 1)
    assert statistics.p_improvement([s[0] for s in scores], [s[2] for s in scores])[1] is None
    scores = [np.repeat(values, 2, axis=1) for values in scores]
    value, interval = statistics.p_improvement([s[0] for s in scores], [s[2] for s in scores])
    assert value == pytest.approx(matrix[0, 2])
    assert interval is not None
    assert interval[0] <= value <= interval[1]


def test_the_interval_of_p_better_is_not_drawn_to_pairs() -> None:
    # x wins each pair of one seed by a hair, and about half of all others.
    y = np.arange(5.0)
    value, interval = statistics.p_improvement([y + 0.1] * 3, [y] * 3)
    assert value == pytest.approx(0.6)
    assert interval is not None
    assert np.mean(interval) == pytest.approx(0.6, abs=0.02)


def test_pairwise_p_is_that_of_each_pair() -> None:
    numbers = np.random.default_rng(0)
    scores = [numbers.normal(size=(4, 5)), numbers.normal(size=(4, 5))]
    p = statistics.pairwise_p(scores)
    assert p[1, 3] == p[3, 1] == pytest.approx(effect([s[1] - s[3] for s in scores]).p)
    assert list(np.diag(p)) == [1] * 4


def test_normalised_scores_lie_between_floor_and_ceiling() -> None:
    found = statistics.aggregate([array(0.6, 0.8), array(0.9, 0.9)], [0.5, 0.8], [1.0, 0.9])
    assert found.mean_interval is None  # of two seeds
    assert found.mean == pytest.approx((0.4 + 1) / 2)
    # 0.2, 0.6, 1, 1 without the least and the greatest.
    assert found.iqm == pytest.approx(0.8)
    many = statistics.aggregate([array(*[0.6] * 8), array(*[0.9] * 8)], [0.5, 0.8], [1.0, 0.9])
    assert many.mean_interval == pytest.approx((0.6, 0.6))


def test_methods_share_a_letter_unless_they_are_told_apart() -> None:
    apart = np.zeros((4, 4), dtype=bool)
    for i, j in ((0, 2), (0, 3), (1, 3)):
        apart[i, j] = apart[j, i] = True
    assert statistics.letters(apart) == ["a", "ab", "bc", "c"]
    assert statistics.letters(np.zeros((3, 3), dtype=bool)) == ["a", "a", "a"]
    assert statistics.letters(~np.eye(3, dtype=bool)) == ["a", "b", "c"]


@pytest.mark.parametrize("seed", range(5))
def test_letters_say_exactly_what_is_separable(seed: int) -> None:
    upper = np.triu(np.random.default_rng(seed).random((7, 7)) < 0.4, 1)
    apart = upper | upper.T
    letters = statistics.letters(apart)
    for i in range(7):
        for j in range(7):
            assert bool(set(letters[i]) & set(letters[j])) == (not apart[i, j]) or i == j


# --- the bootstrap over seeds and examples ---


def test_the_bootstrap_resamples_examples_as_the_binomial_says() -> None:
    # One side always right, the other with chance .8: the error of a mean over 400 examples is .02.
    labels = np.zeros(400, dtype=int)
    wrong = (np.arange(400) % 5 == 0).astype(int)
    difference, (low, high) = statistics.bootstrap_examples(
        "accuracy", labels, np.stack([labels] * 40), np.stack([wrong] * 40)
    )
    assert difference == pytest.approx(0.2)
    assert (high - low) / 2 == pytest.approx(2.0227 * 0.02, rel=0.08)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_over_seeds_and_examples_cover_the_difference(seeds: int) -> None:
    numbers = np.random.default_rng(seeds)
    labels, covered = np.zeros(200, dtype=int), 0
    for _ in range(120):
        shares = 0.7 + numbers.normal(0, 0.04, size=(2, seeds, 1))
        x, y = (numbers.random((2, seeds, 200)) > shares).astype(int)
        _, (low, high) = statistics.bootstrap_examples("accuracy", labels, x, y)
        covered += low <= 0 <= high
    assert covered / 120 >= 0.9


def test_the_bootstrap_is_paired_by_example_and_by_seed() -> None:
    numbers = np.random.default_rng(0)
    labels = numbers.integers(2, size=300)
    x = np.stack([np.where(numbers.random(300) < share, labels, 1 - labels) for share in (0.6, 0.9)])
    # The same answers: nothing differs, whatever is drawn.
    assert statistics.bootstrap_examples("accuracy", labels, x, x) == (0.0, (0.0, 0.0))
    assert statistics.bootstrap_examples("matthews", labels, x, x) == (0.0, (0.0, 0.0))


def test_resampled_matthews_is_the_metric() -> None:
    numbers = np.random.default_rng(1)
    labels, answers = numbers.integers(3, size=50), numbers.integers(3, size=50)
    counts = numbers.integers(0, 3, size=(4, 50))
    found = statistics.weighted_matthews(counts.astype(float), labels, answers)
    for weights, value in zip(counts, found, strict=True):
        repeated = np.repeat(labels, weights), np.repeat(answers, weights)
        assert value == pytest.approx(matthews_corrcoef(*repeated))
    assert statistics.weighted_matthews(np.ones((1, 3)), np.array([0, 1, 1]), np.zeros(3, dtype=int)) == 0


# --- coverage ---


def test_t_intervals_of_five_seeds_cover_the_mean_as_often_as_they_say() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.02, size=(20_000, 5))
    half = statistics.t_half(values.std(1, ddof=1), np.full(len(values), 5.0))
    # 95% of 20,000 has a standard error of .0015.
    assert np.mean(np.abs(values.mean(1) - 0.8) <= half) == pytest.approx(0.95, abs=0.006)


def test_intervals_over_settings_of_different_noise_cover_the_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Intervals know nothing of the sign flips, which take nearly all the time.
    monkeypatch.setattr(statistics, "RESAMPLES", 9)
    numbers = np.random.default_rng(0)
    covered = 0
    for _ in range(600):
        drawn = [numbers.normal(0.01, noise, size=5) for noise in (0.002, 0.01, 0.03, 0.03)]
        interval = effect(drawn).interval
        assert interval is not None
        covered += interval[0] <= 0.01 <= interval[1]
    assert covered / 600 == pytest.approx(0.95, abs=0.03)


def test_sign_flips_are_rarely_wrong_where_nothing_differs() -> None:
    numbers = np.random.default_rng(0)
    found = statistics.effects([[numbers.normal(size=4), numbers.normal(size=4)] for _ in range(400)])
    # Two standard errors above .05.
    assert np.mean([one.p < 0.05 for one in found]) < 0.072
