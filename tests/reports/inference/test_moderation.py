"""Tests moderated variances against the formula, and the coverage of intervals with them by simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tensorbench.reports.inference.crossed import OnSetting, of_seeds
from tensorbench.reports.inference.effects import effect
from tensorbench.reports.inference.intervals import LEVEL
from tensorbench.reports.inference.moderation import (
    moderated,
    moderated_together,
    noisy,
    squared_correlations,
)
from tools.benchmarks.study_coverage import SEEDS, Seeds, collapsing

from .test_intervals import array

#: Differences of five seeds that are not correlated with each other.
APART = array(1, -1, 0, 0, 0), array(1, 1, -2, 0, 0), array(1, 1, 1, -3, 0)


def test_variances_are_shrunk_to_their_mean() -> None:
    parts = [of_seeds(own * factor) for own, factor in zip(APART, (2, 1, 1), strict=True)]
    own = [part.seeds for part in parts]
    shrunk = moderated(parts)
    # Four degrees of freedom of the prior and four of five seeds.
    assert [part.seeds for part in shrunk] == pytest.approx([(np.mean(own) + each) / 2 for each in own])
    # With other numbers of seeds, the mean is over variances per seed.
    fewer = [of_seeds(array(1, -1, 3)), *parts]
    mean = np.mean([(part.seeds or 0) * part.pairs for part in fewer])
    assert moderated(fewer)[0].seeds == pytest.approx((4 * mean / 3 + 2 * (fewer[0].seeds or 0)) / 6)


def test_correlated_differences_have_fewer_degrees_of_freedom() -> None:
    first, second, _ = APART
    equal = first, second * (np.var(first) / np.var(second)) ** 0.5
    # Weights of 3/4 and 1/4 on two variances of four degrees of freedom each.
    apart = 4 / (9 / 16 + 1 / 16)
    assert [part.freedom for part in moderated([*map(of_seeds, equal)])] == pytest.approx([apart] * 2)
    # The same differences twice tell no more than once.
    assert [part.freedom for part in moderated([of_seeds(first)] * 2)] == pytest.approx([4, 4])
    # A noisy method dominates the mean variance, which then has hardly more degrees of freedom than its own.
    noisy, _ = moderated([of_seeds(100 * first), of_seeds(second)])
    assert noisy.freedom == pytest.approx(4, abs=0.01)


def test_correlations_are_means_over_tasks_and_unknown_ones_are_cautious() -> None:
    one, other, third = map(of_seeds, APART)
    on_tasks: list[list[OnSetting | None]] = [[one, one], [one, other], [third, None]]
    # r² of 1 and of 0, which is below its mean of 1/4 for independent differences.
    assert squared_correlations(on_tasks)[0, 1] == pytest.approx((1 - 1 / 3) / 2)
    elsewhere = replace(other, by_seed={seed + 3: off for seed, off in other.by_seed.items()})
    assert squared_correlations([[one, elsewhere]]).tolist() == [[1, 1], [1, 1]]


def test_a_method_that_varies_much_more_keeps_its_variance_and_enters_no_mean() -> None:
    loud, *quiet = (of_seeds(own * factor) for own, factor in zip(APART, (8, 1, 1), strict=True))
    settings: list[list[OnSetting | None]] = [[loud, *quiet]] * 2
    together, apart = moderated_together(settings)
    mean = np.mean([part.seeds or 0 for part in quiet])
    assert apart == {0: pytest.approx((loud.seeds or 0) / mean)}
    assert together == [[loud, *moderated(quiet)]] * 2
    # One setting is enough only if the ratio is significant.
    assert noisy([[of_seeds(array(0, 2, 4)), of_seeds(array(0, 1, 0))]]) == {}
    assert noisy([[of_seeds(array(0, 20, 40)), of_seeds(array(0, 1, 0))]]) == {0: pytest.approx(1200)}
    # Methods that did not run on a setting, or whose noise is unknown, have no part in it.
    assert noisy([[loud, None, None], [None, *quiet], [loud, of_seeds(array(1, 1, 1)), None]]) == {}


def test_one_method_alone_gains_nothing() -> None:
    part = of_seeds(array(1, 2, 4, 3, 0))
    (alone,) = moderated([part])
    assert effect([alone]).interval(LEVEL) == pytest.approx(effect([part]).interval(LEVEL))


def test_unknown_noise_stays_unknown_and_counts_for_no_mean() -> None:
    known = [of_seeds(own) for own in APART[:2]]
    few, still = of_seeds(array(1, 2)), of_seeds(array(1, 1, 1))
    assert moderated([few, *known, still]) == [few, *moderated(known), still]


def test_failures_and_examples_are_not_moderated() -> None:
    parts = [replace(of_seeds(APART[0]), failures=2.0, examples=3.0), of_seeds(APART[1])]
    first, second = moderated(parts)
    assert (first.failures, first.examples, second.failures, second.examples) == (2, 3, 0, 0)


@pytest.mark.parametrize("name", SEEDS)
def test_intervals_hold_at_once(name: str) -> None:
    _, (off, half) = SEEDS[name].errors(np.random.default_rng(0), 4000)
    assert (np.abs(off) <= half).all(1).mean() > 0.94


@pytest.mark.parametrize(("seeds", "share"), [(3, 0.6), (5, 0.8)])
def test_intervals_of_few_seeds_are_much_narrower(seeds: int, share: float) -> None:
    (_, without), (_, half) = Seeds(1, seeds).errors(np.random.default_rng(0), 1000)
    assert np.median(half) < share * np.median(without)


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_scores_and_rates_hold_where_runs_collapse(rate: float) -> None:
    found = collapsing(rate, Seeds(4, 5, methods=4), 200)
    assert found.differences > 0.92
    assert found.rate >= 0.95
