"""Sign flips: every one of them, for one method and for several at once."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from reports.inference import flips
from reports.inference.intervals import Array

from .test_intervals import DARWIN, array


def by_hand(values: Array) -> float:
    sums = [abs(np.dot(signs, values)) for signs in product((-1, 1), repeat=len(values))]
    return float(np.mean([one >= abs(values.sum()) - 1e-9 for one in sums]))


def test_they_give_fishers_p_for_darwins_maize() -> None:
    # Fisher, The Design of Experiments (1935), §21: 863 of 32,768 flips reach the sum, on one side.
    assert flips.p_of(DARWIN) == pytest.approx(2 * 863 / 32768)


@pytest.mark.parametrize("pairs", [1, 2, 3, 7, 10])
def test_half_and_half_counts_every_flip(pairs: int) -> None:
    values = np.random.default_rng(pairs).integers(-3, 6, size=pairs).astype(float)
    assert flips.p_of(values) == pytest.approx(by_hand(values))


@pytest.mark.parametrize("pairs", [2, 5, 15, 40])
def test_differences_of_one_sign_reach_the_smallest_p(pairs: int) -> None:
    assert flips.p_of(np.arange(1.0, pairs + 1)) == pytest.approx(flips.smallest_p(pairs))


def test_beyond_what_can_be_counted_flips_are_random() -> None:
    assert flips.p_of(np.arange(1.0, 46.0)) == pytest.approx(1e-5)
    assert flips.p_of(array(*[1, -1] * 25, 0.0)) == 1


def test_equal_differences_count_as_reached_whatever_rounding_leaves() -> None:
    assert flips.p_of(array(0.1, 0.2, -0.3, 0.1 + 0.2)) == by_hand(array(1, 2, -3, 3))


def test_holm_corrects_as_in_the_textbook() -> None:
    assert flips.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert flips.holm([]) == []


def step_down_by_hand(rows: Array) -> list[float]:
    """Westfall and Young's algorithm word for word, over all flips."""
    scale = np.sqrt((rows**2).sum(1))
    signs = np.array(list(product((-1, 1), repeat=rows.shape[1])))
    drawn, observed = np.abs(signs @ rows.T) / scale, np.abs(rows.sum(1)) / scale
    order = list(np.argsort(-observed))
    p, last = np.empty(len(rows)), 0.0
    for place, method in enumerate(order):
        largest = drawn[:, order[place:]].max(1)
        last = max(last, float((largest >= observed[method] - 1e-9).mean()))
        p[method] = last
    return list(p)


def test_methods_that_share_pairs_are_adjusted_together() -> None:
    numbers = np.random.default_rng(3)
    shared = numbers.normal(size=8)
    many = [[numbers.normal(shift, 0.5, size=8) - shared] for shift in (0, 0.3, 1.5)]
    alone, adjusted, joint = flips.adjusted(many, [[range(8)]] * 3)
    assert joint
    assert alone == [pytest.approx(by_hand(one)) for (one,) in many]
    assert adjusted == pytest.approx(step_down_by_hand(np.concatenate(many)))
    assert all(one <= other + 1e-12 for one, other in zip(adjusted, flips.holm(alone), strict=True))


def test_as_many_pairs_of_other_seeds_are_other_pairs() -> None:
    many = [[np.arange(1.0, 6.0)], [np.arange(2.0, 7.0)]]
    same, other = [[0, 1, 2, 3, 4]], [[1, 2, 3, 4, 5]]
    assert flips.adjusted(many, [same, same])[2]
    alone, adjusted, joint = flips.adjusted(many, [same, other])
    assert not joint
    assert adjusted == flips.holm(alone)


def test_methods_of_other_pairs_are_adjusted_by_holm() -> None:
    many = [[np.arange(1.0, 6.0)], [np.arange(1.0, 5.0)]]
    alone, adjusted, joint = flips.adjusted(many, [[range(5)], [range(4)]])
    assert not joint
    assert adjusted == pytest.approx(flips.holm(alone))
    assert flips.adjusted([], []) == ([], [], False)


def test_settings_weigh_the_same() -> None:
    # Of 64 flips: those of the two that count; |mean| ≥ 1 needs both of one sign, half of them.
    assert flips.p_of(flips.weighted([array(1, 3), array(0, 0, 0, 0)])) == 0.5


def test_no_difference_at_all_is_never_rare() -> None:
    assert flips.adjusted([[np.zeros(5)], [np.zeros(5)]], [[range(5)]] * 2)[:2] == ([1, 1], [1, 1])
