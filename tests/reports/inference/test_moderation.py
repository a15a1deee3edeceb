"""Tests moderated variances against the formula, and the coverage of intervals with them by simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tensorbench.reports.inference.crossed import OnSetting, of_seeds
from tensorbench.reports.inference.effects import effect
from tensorbench.reports.inference.intervals import LEVEL
from tensorbench.reports.inference.moderation import moderated
from tools.benchmarks.study_coverage import SEEDS, Seeds

from .test_intervals import array


def test_variances_are_shrunk_to_their_mean() -> None:
    parts = [OnSetting(5, 0.0, variance) for variance in (1.0, 2.0, 6.0)]
    # Four degrees of freedom of the prior and four of five seeds.
    assert [part.seeds for part in moderated(parts)] == [2.0, 2.5, 4.5]
    assert [part.freedom for part in moderated(parts)] == pytest.approx([8, 8, 8])
    # With other numbers of seeds, the mean is over variances per seed: 3, 5, 10 and 30.
    fewer = [OnSetting(3, 0.0, 1.0), *parts]
    assert moderated(fewer)[0].seeds == pytest.approx((4 * 12 / 3 + 2 * 1) / 6)


def test_one_method_alone_gains_nothing_and_two_gain_less() -> None:
    part = of_seeds(array(1, 2, 4, 3, 0))
    (alone,) = moderated([part])
    assert effect([alone]).interval(LEVEL) == pytest.approx(effect([part]).interval(LEVEL))
    # Weights of 3/4 and 1/4 on two variances of four degrees of freedom each.
    freedoms = [each.freedom for each in moderated([part, part])]
    assert freedoms == pytest.approx([4 / (9 / 16 + 1 / 16)] * 2)


def test_unknown_noise_stays_unknown_and_counts_for_no_mean() -> None:
    known = [OnSetting(5, 0.0, variance) for variance in (1.0, 3.0)]
    few, still = of_seeds(array(1, 2)), of_seeds(array(1, 1, 1))
    assert moderated([few, *known, still]) == [few, *moderated(known), still]


def test_failures_and_examples_are_not_moderated() -> None:
    parts = [replace(OnSetting(5, 0.0, 1.0), failures=2.0, examples=3.0), OnSetting(5, 0.0, 3.0)]
    first, second = moderated(parts)
    assert (first.failures, first.examples, second.failures, second.examples) == (2, 3, 0, 0)


@pytest.mark.parametrize("name", [name for name, world in SEEDS.items() if not world.collapses])
def test_intervals_hold_at_once(name: str) -> None:
    _, (off, half) = SEEDS[name].errors(np.random.default_rng(0), 4000)
    assert (np.abs(off) <= half).all(1).mean() > 0.94


@pytest.mark.parametrize(("seeds", "share"), [(3, 0.4), (5, 0.75)])
def test_intervals_of_few_seeds_are_much_narrower(seeds: int, share: float) -> None:
    (_, without), (_, half) = Seeds(1, seeds).errors(np.random.default_rng(0), 1000)
    assert np.median(half) < share * np.median(without)
