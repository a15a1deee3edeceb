"""What a design finds, and what a comparison says beyond its tasks."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from reports.inference import beyond, power
from reports.inference.crossed import of_seeds
from reports.inference.effects import effect

from .test_intervals import array


def test_one_comparison_on_one_task_has_the_power_of_the_t_test() -> None:
    design = power.of_runs(0.007, settings=1, seeds=5, claims=1)
    assert design.finds is not None
    noncentral = design.finds / design.error().total
    assert stats.nct.sf(stats.t.ppf(0.975, 4), 4, noncentral) == pytest.approx(0.8, abs=1e-3)


def test_the_usual_design_finds_about_one_point() -> None:
    design = power.of_runs(0.007, settings=4, seeds=5, claims=14)
    assert design.finds == pytest.approx(0.0101, abs=2e-4)
    assert design.needs(0.0102) == 5
    assert power.of_runs(0.007, settings=1, seeds=5, claims=14).needs(0.01) == 19


@pytest.mark.parametrize("spreads", [(2e-4, 2e-4), (1e-4, 1e-4, 1e-4, 1e-4), (1e-6, 1e-6, 4e-6, 4e-4)])
def test_what_is_found_is_found_four_times_in_five(spreads: tuple[float, ...]) -> None:
    design = power.Design(seeds=4, claims=3, spreads=spreads, examples=1e-5)
    assert design.finds is not None
    assert design.margin is not None
    sds, numbers = np.sqrt(spreads)[:, None], np.random.default_rng(0)
    found = within = 0.0
    draws = 600
    for _ in range(draws):
        # What the examples add is the same on every setting, and known.
        shift = numbers.normal(0, math.sqrt(design.examples))
        drawn = [of_seeds(runs + shift) for runs in numbers.normal(0, sds, (design.settings, design.seeds))]
        off = effect([replace(part, examples=design.settings * design.examples) for part in drawn])
        assert off.error is not None
        half = off.error.half(design.level)
        found += off.difference + design.finds > half
        within += abs(off.difference) + half < design.margin
    assert found / draws == pytest.approx(0.8, abs=0.04)
    assert within / draws == pytest.approx(0.8, abs=0.04)


def test_too_few_examples_are_not_made_up_for_by_seeds() -> None:
    design = power.Design(seeds=5, claims=1, spreads=(1e-4,), examples=1e-4)
    assert design.needs(0.01) is None
    assert design.needs(0.05) is not None


def test_seeds_without_spread_leave_what_the_examples_add() -> None:
    still, nearly = (power.Design(3, claims=1, spreads=(one,) * 2, examples=1e-4) for one in (0.0, 1e-16))
    assert still.finds is not None
    assert still.finds == pytest.approx(nearly.finds, rel=1e-4)
    assert still.margin == pytest.approx(nearly.margin, rel=1e-4)
    # More seeds do not help, and fewer than two tell nothing.
    assert (still.needs(still.finds * 0.99), still.needs(still.finds * 1.01)) == (None, 2)


def test_one_seed_finds_nothing() -> None:
    design = power.of_runs(0.007, settings=4, seeds=1, claims=1)
    assert (design.finds, design.margin) == (None, None)
    assert design.needs(0.02) == 3


def test_a_design_is_that_of_the_comparison_in_the_middle() -> None:
    small, large = (effect([of_seeds(array(0, 2, 4)), of_seeds(array(1, 3, 5) * by)]) for by in (1, 3))
    design = power.of_effects([small, large, small])
    assert design == power.Design(seeds=3, claims=3, spreads=(4.0, 4.0))
    assert design.error() == small.error
    assert power.of_effects([small, large]) == power.of_effect(large, claims=2)
    assert power.of_effects([effect([of_seeds(array(1))])]) is None


# --- beyond these tasks ---


def test_tasks_that_agree_say_more_of_another_than_tasks_that_differ() -> None:
    alike = beyond.new_task([0.02, 0.021, 0.019, 0.022], [1e-6] * 4, 0.01)
    apart = beyond.new_task([0.02, 0.06, -0.02, 0.022], [1e-6] * 4, 0.01)
    assert alike is not None
    assert apart is not None
    assert alike.better > 0.95 > 0.8 > apart.better
    for one in (alike, apart):
        assert one.better + one.equal + one.worse == pytest.approx(1)


def test_what_is_equal_on_all_tasks_is_equal_on_another() -> None:
    found = beyond.new_task([0.0, 0.001, -0.001, 0.0], [1e-6] * 4, 0.01)
    assert found is not None
    assert found.equal > 0.95
    assert found.better == pytest.approx(found.worse)


def test_the_posterior_is_that_of_a_sampler() -> None:
    seen, variances, threshold = np.array([0.01, 0.03, 0.0]), np.array([1e-4, 2e-4, 5e-5]), 0.01
    numbers = np.random.default_rng(0)
    tau = np.abs(stats.cauchy.rvs(scale=5 * threshold, size=400_000, random_state=numbers))
    mean = numbers.uniform(-0.2, 0.2, size=400_000)
    weight = np.exp(stats.norm.logpdf(seen[:, None], mean, np.sqrt(variances[:, None] + tau**2)).sum(0))
    new = numbers.normal(mean, tau)
    found = beyond.new_task(list(seen), list(variances), threshold)
    assert found is not None
    assert found.better == pytest.approx((weight * (new > threshold)).sum() / weight.sum(), abs=0.02)
    assert found.worse == pytest.approx((weight * (new < -threshold)).sum() / weight.sum(), abs=0.02)


def test_one_task_says_nothing_of_another() -> None:
    found = beyond.beyond({"a": [of_seeds(array(1, 2, 3))] * 2}, 0.01, 0.95)
    assert found.new_task is None
    assert found.without == ()


def test_wins_losses_and_the_task_that_a_verdict_hangs_on() -> None:
    tasks = {
        "a": [of_seeds(array(0.9, 1.0, 1.1))],
        "b": [of_seeds(array(-1.1, -1.0, -0.9))],
        "c": [of_seeds(array(-1.0, 0.0, 1.0))],
    }
    found = beyond.beyond(tasks, 0.5, 0.95)
    assert (found.wins, found.ties, found.losses) == (1, 1, 1)
    assert [one.task for one in found.without] == ["a", "b", "c"]
    assert found.without[0].difference == pytest.approx(-0.5)
