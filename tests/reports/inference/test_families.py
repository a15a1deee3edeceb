"""Tests critical values against known tables, bounds and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from tensorbench.reports.inference.families import dunnett, tukey
from tensorbench.reports.inference.intervals import simultaneous, t_quantile


def test_dunnett_agrees_with_published_tables() -> None:
    # Two-sided 5% points of Dunnett (1964), table II: 4 and 9 means beside the reference.
    assert dunnett([1.0] * 4, 1.0, freedom=20) == pytest.approx(2.65, abs=0.01)
    assert dunnett([1.0] * 9, 1.0, freedom=60) == pytest.approx(2.77, abs=0.01)
    assert dunnett([1.0] * 9, 1.0) == pytest.approx(2.69, abs=0.01)


def test_tukey_agrees_with_published_tables() -> None:
    # 5% points of the studentised range divided by the root of 2.
    assert tukey(5) == pytest.approx(3.858 / 2**0.5, abs=0.001)
    assert tukey(5, freedom=20) == pytest.approx(4.232 / 2**0.5, abs=0.001)


def test_dunnett_lies_between_one_comparison_and_independent_ones() -> None:
    one = float(t_quantile(0.975, np.inf))
    assert dunnett([3.0], 0.5) == pytest.approx(one)
    sidak = float(t_quantile((1 + simultaneous(6)) / 2, np.inf))
    # Without noise of the reference differences are independent; without any other noise they are equal.
    assert dunnett([1.0] * 6, 1e-12) == pytest.approx(sidak, abs=1e-4)
    assert one < dunnett([1.0] * 6, 1.0) < sidak
    assert dunnett([0.0] * 6, 1.0) == pytest.approx(one, abs=0.02)


def test_dunnett_covers_unequal_variances_as_often_as_it_says() -> None:
    rng, variances, reference = np.random.default_rng(0), np.array([0.2, 1.0, 3.0]), 0.7
    means = rng.normal(size=(200_000, 3)) * np.sqrt(variances)
    common = rng.normal(size=(200_000, 1)) * reference**0.5
    worst = (np.abs(means - common) / np.sqrt(variances + reference)).max(1)
    assert np.mean(worst <= dunnett(variances.tolist(), reference)) == pytest.approx(0.95, abs=0.003)
