"""Tests ranks, and letters for methods that are statistically indistinguishable."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tensorbench.reports.inference import orders
from tensorbench.reports.inference.crossed import of_seeds
from tensorbench.reports.inference.effects import effect

from .test_intervals import array


def test_ranks_count_from_the_best_and_share_ties() -> None:
    ranking = orders.ranks(array(3, 1, 2, 5, 5, 0).reshape(2, 3), None)
    assert list(ranking.mean) == [1.25, 2.25, 2.5]
    assert list(ranking.place) == [1, 2, 3]
    assert ranking.low is None


def test_ranks_of_indistinguishable_methods_are_ranges() -> None:
    # The first is above both others, which are indistinguishable.
    apart = np.array([[0, 1, 1], [-1, 0, 0], [-1, 0, 0]])
    ranking = orders.ranks(array(3, 2, 1).reshape(1, 3), apart)
    assert ranking.low is not None
    assert ranking.high is not None
    assert (list(ranking.low), list(ranking.high)) == ([1, 2, 2], [1, 3, 3])


def test_methods_are_distinguished_by_simultaneous_intervals_of_all_pairs() -> None:
    near, far = (effect([of_seeds(array(0.9, 1.0, 1.1) * by)]) for by in (1, -1))
    # The interval is above zero for a single claim, and also for three simultaneous ones.
    apart = orders.separations([(0, 1, near), (1, 2, far)], 3)
    assert apart is not None
    assert apart.tolist() == [[0, 1, 0], [-1, 0, -1], [0, 1, 0]]
    assert orders.separations([(0, 1, effect([of_seeds(array(1.0))]))], 2) is None
    wide = effect([of_seeds(array(0.5, 1.0, 1.2))])
    assert orders.separations([(0, 1, wide)], 2).tolist() == [[0, 1], [-1, 0]]  # type: ignore[union-attr]
    assert not orders.separations([(0, 1, wide)], 5).any()  # type: ignore[union-attr]


def test_methods_share_a_letter_unless_they_differ_significantly() -> None:
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


def test_the_best_of_equal_methods_is_above_their_mean() -> None:
    # Expected maximum for two standard deviations a and b: √((a² + b²) / 2π); for three equal to one: 3 / (2
    # √π).
    assert orders.best_of_equals([3.0, 4.0]) == pytest.approx(5 / (2 * math.pi) ** 0.5, rel=1e-5)
    assert orders.best_of_equals([2.0] * 3) == pytest.approx(3 / math.pi**0.5, rel=1e-5)
    assert orders.best_of_equals([1.0]) == pytest.approx(0, abs=1e-9)
    # A method without variance stays at its mean, and the best is never below it.
    assert orders.best_of_equals([1.0, 0.0]) == pytest.approx(1 / (2 * math.pi) ** 0.5, rel=1e-5)
