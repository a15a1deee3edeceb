"""Tests the power of a design, and verdicts that a single task decides."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tensorbench.reports.inference import power
from tensorbench.reports.inference.crossed import OnSetting, of_seeds
from tensorbench.reports.inference.effects import Effect, effect
from tensorbench.reports.inference.moderation import moderated, squared_correlations

from .test_intervals import array


def together(settings: Iterable[Iterable[OnSetting]]) -> list[list[OnSetting]]:
    """Moderated variances, with correlations from all settings."""
    every = [list(parts) for parts in settings]
    squares = squared_correlations(every)
    return [moderated(parts, squares) for parts in every]


def test_one_comparison_on_one_task_has_the_power_of_the_t_test() -> None:
    design = power.of_runs(0.007, settings=1, seeds=5, claims=1)
    assert design.finds is not None
    noncentral = design.finds / design.error().total
    assert stats.nct.sf(stats.t.ppf(0.975, 4), 4, noncentral) == pytest.approx(0.8, abs=1e-3)


def test_the_usual_design_finds_about_one_point() -> None:
    design = power.of_runs(0.007, settings=4, seeds=5, claims=14)
    assert design.finds == pytest.approx(0.0089, abs=2e-4)
    assert design.needs(0.009) == 5
    assert power.of_runs(0.007, settings=1, seeds=5, claims=14).needs(0.01) == 18


@pytest.mark.parametrize("spreads", [(2e-4, 2e-4), (1e-4, 1e-4, 1e-4, 1e-4), (1e-6, 1e-6, 4e-6, 4e-4)])
def test_detectable_differences_are_detected_four_times_in_five(spreads: tuple[float, ...]) -> None:
    design = power.Design(seeds=4, claims=3, spreads=spreads, examples=1e-5)
    assert design.finds is not None
    assert design.margin is not None
    sds, numbers = np.sqrt(spreads)[:, None], np.random.default_rng(0)
    detected = within = 0.0
    draws = 600
    for _ in range(draws):
        # The examples add a known amount, equal in every setting.
        shift = numbers.normal(0, math.sqrt(design.examples))
        # Three methods are compared, each with the same noise.
        shape = design.claims, design.settings, design.seeds
        runs = numbers.normal(0, sds, shape) + shift
        drawn = [parts[0] for parts in together([map(of_seeds, each) for each in zip(*runs, strict=True)])]
        off = effect([replace(part, examples=design.settings * design.examples) for part in drawn])
        assert off.error is not None
        half = off.error.half(design.level)
        detected += off.difference + design.finds > half
        within += abs(off.difference) + half < design.margin
    assert detected / draws == pytest.approx(0.8, abs=0.04)
    assert within / draws == pytest.approx(0.8, abs=0.04)


def test_too_few_examples_are_not_made_up_for_by_seeds() -> None:
    design = power.Design(seeds=5, claims=1, spreads=(1e-4,), examples=1e-4)
    assert design.needs(0.01) is None
    assert design.needs(0.05) is not None


def test_seeds_without_spread_leave_what_the_examples_add() -> None:
    still, nearly = (
        power.Design(3, claims=1, spreads=(spread,) * 2, examples=1e-4) for spread in (0.0, 1e-16)
    )
    assert still.finds is not None
    assert still.finds == pytest.approx(nearly.finds, rel=1e-4)
    assert still.margin == pytest.approx(nearly.margin, rel=1e-4)
    # More seeds do not help, and fewer than three give no estimate.
    assert (still.needs(still.finds * 0.99), still.needs(still.finds * 1.01)) == (None, 3)


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_find_nothing(seeds: int) -> None:
    design = power.of_runs(0.007, settings=4, seeds=seeds, claims=1)
    assert (design.finds, design.margin) == (None, None)
    assert design.needs(0.02) == 3


def test_a_design_has_the_mean_variances_of_its_comparisons() -> None:
    small, large = (effect([of_seeds(array(0, 2, 4)), of_seeds(array(1, 3, 5) * by)]) for by in (1, 3))
    tuned = effect([replace(part, examples=1.0) for part in small.parts])
    design = power.of_effects([small, large, tuned], claims=3)
    assert design == power.Design(3, 3, spreads=(4.0, pytest.approx(44 / 3)), examples=1 / 6, moderated=1)
    # The variances of comparisons with collapsed runs are not moderated, so their intervals are wider.
    assert (design.finds or 0.0) > (replace(design, moderated=None).finds or math.inf)
    every = [effect([part]) for part in moderated([of_seeds(array(0, 2, 4)), of_seeds(array(0, 1, 4))])]
    alone = effect([of_seeds(array(0, 2, 4))])
    sound, one_fell = power.of_effects(every, claims=2), power.of_effects([*every, alone], claims=3)
    assert [each and each.moderated for each in (sound, one_fell)] == [2, 2]
    assert power.of_effects([small, small], claims=2) == power.of_effects([small], claims=2)
    assert power.of_effects([effect([of_seeds(array(1, 2))])], claims=1) is None


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("tasks", [1, 4])
def test_power_from_stored_and_assumed_noise_holds(seeds: int, tasks: int) -> None:
    sd, claims, numbers = 0.007, 14, np.random.default_rng(1)

    def contrasts() -> list[Effect]:
        """The differences of 14 methods from a reference, all with the same true score."""
        scores = numbers.normal(0, sd, (claims + 1, tasks, seeds))
        on_tasks = together(
            [of_seeds(each[task] - scores[0, task]) for each in scores[1:]] for task in range(tasks)
        )
        return [effect(list(parts)) for parts in zip(*on_tasks, strict=True)]

    def found(design: power.Design | None) -> bool:
        assert design is not None
        assert design.finds is not None
        contrast = contrasts()[0]
        assert contrast.error is not None
        return bool(contrast.difference + design.finds > contrast.error.half(design.level))

    assumed = power.of_runs(sd, tasks, seeds, claims)
    assert 0.7 <= np.mean([found(assumed) for _ in range(150)]) <= 0.9
    # Noise that is measured on a few seeds of one task is itself uncertain, which costs power on average.
    least = {1: {3: 0.5, 5: 0.65}}.get(tasks, {}).get(seeds, 0.7)
    assert least <= np.mean([found(power.of_effects(contrasts(), claims)) for _ in range(150)]) <= 0.9
