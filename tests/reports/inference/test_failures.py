"""Tests what a block's failures say of a cell against numerical integration and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tensorbench.reports.inference.failures import Failures, pooled


def test_moments_of_the_cells_shares() -> None:
    counts, trials = np.array([0, 0, 4, 8]), 40
    block = pooled(counts, [trials] * 4, [0.3, 0.3, 0.2, 0.35])
    mean = 12.5 / 161
    assert block.mean == pytest.approx(mean)
    excess = (counts / trials).var(ddof=1) - mean * (1 - mean) / trials
    assert block.correlation == pytest.approx(excess / (mean * (1 - mean) * (1 - 1 / trials)))
    # Falls are of failed trials: four of .2 and eight of .35.
    assert block.fall == pytest.approx(0.3)


@pytest.mark.parametrize("failed", [0, 3, 40])
def test_the_chance_is_the_posterior_by_bayes(failed: int) -> None:
    block = Failures(mean=0.05, correlation=0.1, fall=0.3)
    prior = stats.beta(0.05 * 9, 0.95 * 9)
    edges = np.linspace(0, 1, 200_001)
    middles = (edges[1:] + edges[:-1]) / 2
    mass = np.diff(prior.cdf(edges)) * middles**failed * (1 - middles) ** (40 - failed)
    mass /= mass.sum()
    quartile, variance = block.chance(failed, 40)
    assert quartile == pytest.approx(middles[mass.cumsum().searchsorted(0.75)], abs=1e-4)
    assert variance == pytest.approx(mass @ middles**2 - (mass @ middles) ** 2, rel=1e-3)


def test_pooled_failures_recover_their_distribution() -> None:
    numbers = np.random.default_rng(0)
    failed = numbers.binomial(40, numbers.beta(0.05 * 9, 0.95 * 9, size=2000))
    block = pooled(failed, [40] * 2000, [0.3] * 2000)
    assert (block.mean, block.correlation) == pytest.approx((0.05, 0.1), rel=0.15)


def test_a_failure_that_nobody_saw_is_less_likely_in_a_larger_block() -> None:
    few, many = (pooled([0] * cells, [40] * cells, [0.3] * cells) for cells in (2, 32))
    assert few.fall is None
    assert many.chance(0, 40)[0] < few.chance(0, 40)[0]
    # A method that failed itself is more likely to fail again.
    assert many.chance(2, 40) > many.chance(0, 40)
