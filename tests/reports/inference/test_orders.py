"""Chances, ranks, letters and normalised scores."""

from __future__ import annotations

import numpy as np
import pytest

from reports.inference import chances, orders
from reports.inference.chances import Criterion
from reports.inference.crossed import of_seeds
from reports.inference.effects import effect
from reports.inference.normalised import aggregate, interquartile_mean

from .test_intervals import array


def test_p_better_is_the_tortoises_share_of_wins() -> None:
    # Mann and Whitney's U of Aesop's race, T H H H H H T T T T T H: the hares win 25 of 36 pairs.
    finish = "THHHHHTTTTTH"
    place = {animal: array(*(-i for i, who in enumerate(finish) if who == animal)) for animal in "TH"}
    assert chances.p_better(place["H"], place["T"]) == pytest.approx(25 / 36)
    assert chances.p_better(place["T"], place["H"]) == pytest.approx(11 / 36)


def test_the_interval_of_p_better_has_a_width_where_every_run_wins() -> None:
    value, interval = chances.p_improvement([np.arange(5.0) + 9], [np.arange(5.0)])
    assert interval is not None
    assert (value, interval[1]) == (1, 1)
    # Of 25 wins by 5 runs of either side not much more than one half is certain.
    assert 0.5 < interval[0] < 0.8
    reverse = chances.p_improvement([np.arange(5.0)], [np.arange(5.0) + 9])[1]
    assert reverse == pytest.approx((0, 1 - interval[0]), abs=1e-5)


def test_more_settings_narrow_the_interval_and_one_run_has_none() -> None:
    x, y = array(1, 3, 5, 7, 9), array(0, 2, 4, 6, 8)
    one, four = (chances.p_improvement([x] * n, [y] * n)[1] for n in (1, 4))
    assert one is not None
    assert four is not None
    assert one[0] < four[0] < 0.6 < four[1] < one[1]
    assert chances.p_improvement([array(1)], [array(0)]) == (1.0, None)


@pytest.mark.parametrize(
    ("interval", "answer"),
    [
        ((0.6, 0.9), Criterion.BETTER),
        ((0.1, 0.4), Criterion.WORSE),
        ((0.51, 0.7), Criterion.SLIGHT),
        ((0.3, 0.49), Criterion.SLIGHT),
        ((0.4, 0.9), Criterion.OPEN),
    ],
)
def test_bouthilliers_criterion(interval: tuple[float, float], answer: Criterion) -> None:
    assert chances.criterion(interval) == answer


def test_noethers_sample_size_is_the_papers() -> None:
    # Bouthillier et al. (2021): 29 runs find .75 with 95% power.
    assert chances.noether(0.75, power=0.95) == 29


def test_the_matrix_of_p_better_agrees_with_each_pair_and_counts_ties_half() -> None:
    scores = [
        [array(1, 2, 3), array(1, 1, 1)],
        [array(2, 2, 2), array(1, 1, 1)],
        [array(0, 0, 9), array(0, 2, 3)],
    ]
    matrix = chances.better_matrix(scores)
    for i in range(3):
        for j in range(3):
            assert matrix[i, j] == pytest.approx(chances.p_improvement(scores[i], scores[j])[0])
    assert np.allclose(matrix + matrix.T, 1)


def test_ranks_count_from_the_best_and_share_ties() -> None:
    found = orders.ranks(array(3, 1, 2, 5, 5, 0).reshape(2, 3), None)
    assert list(found.mean) == [1.25, 2.25, 2.5]
    assert list(found.place) == [1, 2, 3]
    assert found.low is None


def test_ranks_leave_open_what_is_not_told_apart() -> None:
    # The first is above both others, which are not told apart.
    apart = np.array([[0, 1, 1], [-1, 0, 0], [-1, 0, 0]])
    found = orders.ranks(array(3, 2, 1).reshape(1, 3), apart)
    assert found.low is not None
    assert found.high is not None
    assert (list(found.low), list(found.high)) == ([1, 2, 2], [1, 3, 3])


def test_methods_are_told_apart_by_intervals_of_all_pairs_at_once() -> None:
    near, far = (effect([of_seeds(array(0.9, 1.0, 1.1) * by)]) for by in (1, -1))
    # The interval of one claim is above zero, and of three as well.
    apart = orders.separations([(0, 1, near), (1, 2, far)], 3)
    assert apart is not None
    assert apart.tolist() == [[0, 1, 0], [-1, 0, -1], [0, 1, 0]]
    assert orders.separations([(0, 1, effect([of_seeds(array(1.0))]))], 2) is None
    wide = effect([of_seeds(array(0.5, 1.0, 1.2))])
    assert orders.separations([(0, 1, wide)], 2).tolist() == [[0, 1], [-1, 0]]  # type: ignore[union-attr]
    assert not orders.separations([(0, 1, wide)], 5).any()  # type: ignore[union-attr]


def test_methods_share_a_letter_unless_they_are_told_apart() -> None:
    apart = np.zeros((4, 4), dtype=bool)
    for i, j in ((0, 2), (0, 3), (1, 3)):
        apart[i, j] = apart[j, i] = True
    assert orders.letters(apart) == ["a", "ab", "bc", "c"]
    assert orders.letters(np.zeros((3, 3), dtype=bool)) == ["a", "a", "a"]
    assert orders.letters(~np.eye(3, dtype=bool)) == ["a", "b", "c"]


@pytest.mark.parametrize("seed", range(5))
def test_letters_say_exactly_what_is_separable(seed: int) -> None:
    upper = np.triu(np.random.default_rng(seed).random((7, 7)) < 0.4, 1)
    apart = upper | upper.T
    letters = orders.letters(apart)
    for i in range(7):
        for j in range(7):
            assert bool(set(letters[i]) & set(letters[j])) == (not apart[i, j]) or i == j


def test_the_interquartile_mean_is_that_of_the_textbook() -> None:
    assert interquartile_mean(array(5, 8, 4, 38, 8, 6, 9, 7, 7, 3, 1, 6)) == 6.5


def test_an_aggregate_is_the_mean_of_the_settings_means() -> None:
    runs = [array(0.2, 0.6), array(1, 1)]
    varies = [of_seeds(array(0.2, 0.6)), of_seeds(array(1, 1))]
    found = aggregate(runs, varies)
    assert found.mean == pytest.approx(0.7)
    # 0.2, 0.6, 1, 1 without the least and the greatest.
    assert found.iqm == pytest.approx(0.8)
    # Half of what the first setting has alone: 12.7 standard errors of .2.
    assert found.mean_interval == pytest.approx((0.7 - 12.7062 * 0.1, 0.7 + 12.7062 * 0.1), rel=1e-4)
    assert aggregate(runs, [None, *varies[1:]]).mean_interval is None
