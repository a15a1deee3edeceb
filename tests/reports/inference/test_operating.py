"""Simulated sequential experiments, where the outcome is known."""

from __future__ import annotations

import numpy as np
import pytest

from tensorbench.reports.inference.operating import simulate
from tensorbench.reports.inference.power import Design
from tensorbench.reports.inference.sequential import SPENDING, Looks

MARGIN = 0.01


def design(sd: float, spending: str = "linear", examples: float = 0.0) -> Design:
    """Four methods on three tasks. `sd` is the standard deviation of a study's paired difference."""
    return Design(8, 4, (sd**2,) * 3, examples, looks=Looks((3, 5, 8), spending))


@pytest.mark.parametrize(
    ("sd", "difference", "stop", "decided"),
    [(1e-4, 0.0, 3, True), (1e-4, -0.02, 3, True), (0.3, 0.0, 8, False)],
)
def test_verdicts_come_at_once_without_noise_and_never_with_much(
    sd: float, difference: float, stop: int, decided: bool
) -> None:
    made = simulate(design(sd), difference, MARGIN, together=False)
    assert np.mean(made.stops == stop) > 0.95
    assert abs(made.decided.mean() - decided) < 0.05
    assert made.false.mean() < 0.05


@pytest.mark.parametrize("spending", SPENDING)
@pytest.mark.parametrize("examples", [0.0, 2e-6])
@pytest.mark.parametrize("difference", [0.0, -MARGIN])
def test_intervals_of_all_methods_hold_at_the_stop(spending: str, examples: float, difference: float) -> None:
    made = simulate(design(0.008, spending, examples), difference, MARGIN, together=False)
    four_errors = 4 * (0.05 * 0.95 / len(made.stops)) ** 0.5
    assert made.covered.all(1).mean() > 0.95 - four_errors
    assert made.false.any(1).mean() < 0.05 + four_errors
    assert {8} < {*np.unique(made.stops)} <= {3, 5, 8}


def test_methods_stop_together_if_the_suite_says_so() -> None:
    each, all_ = (simulate(design(0.008), -MARGIN, MARGIN, together=together) for together in (False, True))
    assert (all_.stops == all_.stops[:, :1]).all()
    assert all_.stops.mean() > each.stops.mean()


def test_a_design_without_looks_is_refused() -> None:
    with pytest.raises(ValueError, match="looks"):
        simulate(Design(8, 4, (1e-4,)), 0.0, MARGIN, together=False)
