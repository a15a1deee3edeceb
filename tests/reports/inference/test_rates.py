"""Tests learning rates: shares of the window near the best, ranges, transfer and sources of variance."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from scipy import stats

from tensorbench.reports.inference.crossed import of_seeds
from tensorbench.reports.inference.power import Response, stratified
from tensorbench.reports.inference.rates import (
    chosen_by_validation,
    have_best_rates,
    of_share,
    of_transfer,
    range_near,
    share_near,
    smoothed,
    sources,
    transfer,
)
from tensorbench.reports.inference.studies import (
    CompleteStudies,
    of_method,
    of_pair,
    score_after,
    share_failed,
    share_failed_interval,
)

from .test_intervals import array
from .test_studies import drawn, interval


def parabola(optimum: float, cliff: float = inf, studies: int = 5, base: float = 0.85) -> CompleteStudies:
    """Studies without noise on a window of one decade: scores fall from `base` by 4 points per decade².

    Trials more than `cliff` decades above the optimum score 0.5, as by chance.
    """
    offsets = stratified(np.random.default_rng(7), studies, 8)
    scores = base - 0.04 * (offsets - optimum) ** 2
    scores[offsets - optimum > cliff] = 0.5
    return CompleteStudies(1 - scores, scores, offsets=offsets, chance=0.5)


def test_smoothing_keeps_a_parabola_and_falls_where_trials_fail() -> None:
    rates = np.linspace(-0.45, 0.45, 19)
    assert smoothed(parabola(0.2), rates) == pytest.approx(0.85 - 0.04 * (rates - 0.2) ** 2)
    falling = smoothed(parabola(-0.4, cliff=0.6), rates)
    assert falling[rates < 0.1] == pytest.approx(0.85 - 0.04 * (rates[rates < 0.1] + 0.4) ** 2)
    assert falling[rates > 0.4] == pytest.approx(0.5)


def test_shares_are_those_of_the_window() -> None:
    # Rates within a point of the best are within half a decade of the optimum.
    assert share_near(parabola(0.0)) == 1
    assert share_near(parabola(0.3)) == pytest.approx(0.7, abs=0.05)
    assert share_failed(parabola(-0.4, cliff=0.6)) == pytest.approx(0.3, abs=0.03)
    assert share_near(parabola(-0.4, cliff=0.45)) == pytest.approx(0.55, abs=0.05)
    part = of_share(share_failed, parabola(-0.4, cliff=0.6), parabola(0.0))
    assert part.difference == pytest.approx(0.3, abs=0.03)
    assert interval(of_share(share_failed, parabola(0.0), parabola(0.1))) is None


@pytest.mark.parametrize(
    ("optimum", "cliff", "low", "high"),
    [(0.0, inf, -0.5, 0.5), (0.3, inf, -0.2, 0.5), (-0.3, inf, -0.5, 0.2), (-0.4, 0.45, -0.5, 0.05)],
)
def test_the_range_is_that_of_rates_within_a_point_of_the_best(
    optimum: float, cliff: float, low: float, high: float
) -> None:
    # A point is half a decade from the optimum of this parabola; the cliff is this far beyond it.
    studies = parabola(optimum, cliff)
    assert studies.offsets is not None
    apart = float(np.diff(np.sort(studies.offsets.ravel())).max())
    assert range_near(studies) == pytest.approx((low, high), abs=apart)
    assert chosen_by_validation(studies) == pytest.approx(optimum, abs=0.02)
    within = (studies.offsets >= range_near(studies)[0]) & (studies.offsets <= range_near(studies)[1])
    assert share_near(studies) == pytest.approx(within.mean())
    # Losses that fall on towards a range of failures lead to its border, not into it.
    falling = replace(studies, losses=np.where(studies.failed, np.inf, 2 - studies.offsets))
    assert range_near(falling)[0] <= chosen_by_validation(falling) <= range_near(falling)[1]


def test_no_trial_of_the_range_failed() -> None:
    studies = parabola(0.0)
    assert studies.offsets is not None
    # One trial at a good rate, above the best, fails.
    broken = np.unravel_index(np.argsort(studies.offsets, axis=None)[28], studies.offsets.shape)
    scores = studies.scores.copy()
    scores[broken] = 0.5
    low, high = range_near(CompleteStudies(1 - scores, scores, offsets=studies.offsets, chance=0.5))
    assert low == studies.offsets.min()
    assert high == np.sort(studies.offsets, axis=None)[27]


def test_the_error_of_a_share_is_that_of_the_studies_shares() -> None:
    failed = np.zeros((4, 5))
    failed[0, 1] = failed[2, :2] = 1
    method = CompleteStudies(failed, 0.9 - 0.4 * failed)
    reference = CompleteStudies(0 * failed, 0.9 - 0 * failed)
    part, expected = of_share(share_failed, method, reference), of_seeds(failed.mean(1))
    assert (part.difference, part.seeds) == pytest.approx((expected.difference, expected.seeds))


def test_transfer_is_what_the_other_tasks_rate_costs() -> None:
    tasks = [parabola(0.0), parabola(0.3), parabola(-0.3, base=0.7)]
    # The mean of the others peaks at 0, -0.15 and 0.15.
    assert transfer(tasks) == pytest.approx(-0.04 * np.array([0, 0.45, 0.45]) ** 2, abs=2e-4)
    assert of_transfer(tasks).difference == pytest.approx(transfer(tasks).mean())
    # The other task's rate fails on this task.
    assert transfer([parabola(0.45), parabola(-0.45, cliff=0.6)])[1] == pytest.approx(0.5 - 0.85, abs=1e-3)
    with pytest.raises(ValueError, match="tasks"):
        transfer(tasks[:1])


def test_transfer_knows_no_first_task() -> None:
    tasks = [replace(drawn(seed), offsets=stratified(np.random.default_rng(seed), 5, 4)) for seed in range(3)]
    turned = tasks[1:] + tasks[:1]
    assert transfer(turned) == pytest.approx(np.roll(transfer(tasks), -1))
    part, other = of_transfer(tasks), of_transfer(turned)
    assert (part.difference, part.seeds) == pytest.approx((other.difference, other.seeds))
    # A study that one task lacks counts on none.
    lacking, common = [tasks[0].without(2), *tasks[1:]], [studies.without(2) for studies in tasks]
    assert transfer(lacking) == pytest.approx(transfer(common))
    assert of_transfer(lacking).difference == pytest.approx(transfer(lacking).mean())


@pytest.mark.parametrize("best", [0.5136, 0.563, 0.568, 0.83])
def test_rounding_errors_decide_no_failure(best: float) -> None:
    scores = np.array([[best, round(best - 0.1, 4), round(best - 0.0999, 4)]])
    assert CompleteStudies(1 - scores, scores).failed.tolist() == [[False, True, False]]


def diverged(*lasting: tuple[int, int], loss: float = inf) -> CompleteStudies:
    """Five studies of which all trials diverged, except those at these places (study, point)."""
    losses = np.full((5, 8), loss)
    scores = np.full((5, 8), 0.5)
    for place in lasting:
        losses[place], scores[place] = 0.2, 0.8
    offsets = stratified(np.random.default_rng(7), 5, 8)
    return CompleteStudies(losses, scores, offsets=offsets, chance=0.5)


@pytest.mark.parametrize("loss", [nan, inf])
def test_a_method_that_always_diverges_has_failed_in_all_trials(loss: float) -> None:
    method, other = diverged(loss=loss), parabola(0.0)
    assert method.failed.all()
    assert share_failed(method) == 1
    low, high = share_failed_interval(method)
    assert (stats.binom.sf(39, 40, low), high) == (pytest.approx(0.025), 1)
    assert share_near(method) == 0
    assert smoothed(method, np.linspace(-0.4, 0.4, 5)) == pytest.approx(0.5)
    # It scores as by chance, whatever is tuned.
    assert score_after(method, 4) == pytest.approx(0.5)
    assert interval(of_method(method, 4)) is None
    part = of_pair(method, drawn(1, points=8), 8)
    assert part.seeds is not None
    assert 0 < part.seeds < 1
    assert of_share(share_near, method, other).difference == pytest.approx(-1)


def test_a_method_that_always_diverges_has_no_best_rate() -> None:
    method, other = diverged(), parabola(0.0)
    assert have_best_rates(other)
    for tasks in ([method], [other, method]):
        assert not have_best_rates(*tasks)
    for refused in (range_near, chosen_by_validation):
        with pytest.raises(ValueError, match="failed"):
            refused(method)
    for tasks in ([method, method], [method, other]):
        with pytest.raises(ValueError, match="failed"):
            of_transfer(tasks)


def test_a_method_that_fails_almost_everywhere_has_no_best_rate_either() -> None:
    method = diverged((2, 3))
    assert method.failed.sum() == 39
    assert not have_best_rates(method)
    with pytest.raises(ValueError, match="failed"):
        chosen_by_validation(method)
    # The successful trial is near itself. Without its study, none is.
    assert share_near(method) == 1 / 40
    part = of_share(share_near, method, parabola(0.0))
    assert part.difference == pytest.approx(1 / 40 - 1)
    assert part.seeds == pytest.approx(of_seeds(np.array([0, 0, 1, 0, 0]) / 8).seeds)


def test_transfer_has_no_error_if_no_rate_is_best_without_a_study() -> None:
    # Only study 0 succeeds, at rates that are close together.
    method = diverged(*((0, point) for point in range(8)))
    assert method.offsets is not None
    offsets = method.offsets.copy()
    offsets[0] = np.linspace(0.35, 0.45, 8)
    tasks = [replace(method, offsets=offsets), parabola(0.0)]
    assert have_best_rates(*tasks)
    part = of_transfer(tasks)
    assert (part.seeds, part.difference) == (None, pytest.approx(transfer(tasks).mean()))


def test_a_diverged_trial_fails_although_it_scores_like_the_best() -> None:
    # The trained trials learn nothing, so chance is no worse.
    studies = CompleteStudies(array(0.7, inf, 0.8, nan).reshape(2, 2), np.full((2, 2), 0.5), chance=0.5)
    assert studies.failed.tolist() == [[False, True], [False, True]]
    assert studies.fall == 0


def test_variances_go_to_their_sources() -> None:
    response = Response(curvature=0.08, answers=0, validation=0)
    offsets = stratified(np.random.default_rng(1), 25, 8)
    numbers = np.random.default_rng(2)
    methods = [response.studies(numbers, offsets, 0.0) for _ in range(3)]
    methods.append(replace(methods[0], scores=methods[0].scores + 0.02))
    split = sources(methods, 1)
    assert split.seed == pytest.approx(0.0065**2, rel=0.15)
    assert split.rate == pytest.approx(0.08**2 * (1 / 80 - 1 / 144), rel=0.2)
    assert split.method == pytest.approx(0.01**2, rel=0.2)
    assert split.examples is None
    table = np.random.default_rng(3).random((25, 8, 400)) < 0.8
    assert sources([replace(methods[0], by_example=table)], 1).examples == pytest.approx(0.16 / 400, rel=0.05)


def test_methods_that_always_diverge_have_no_variance_of_rates_and_seeds() -> None:
    method = replace(drawn(0, points=8), offsets=parabola(0.0).offsets)
    alone, beside = sources([method], 1), sources([method, diverged()], 1)
    assert (alone.rate, alone.seed) == (beside.rate, beside.seed)
    assert alone.seed is not None
    assert alone.seed > 0
    none = sources([diverged(), diverged()], 1)
    assert (none.method, none.rate, none.seed) == (0, None, None)
