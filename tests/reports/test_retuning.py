"""Tests how a report uses stored tuning trials."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorbench.plan.rows import Row
from tensorbench.plan.trial import Trial
from tensorbench.records.words import Status
from tensorbench.reports.analysis import Analysis, analyse
from tensorbench.reports.frames import as_json, frames
from tensorbench.reports.inference.crossed import lottery
from tensorbench.reports.reading import read
from tensorbench.search.tuning import with_choices

from ..stored import Result, write
from .made_up import SMALL, NewStore, plan_of

EXAMPLES = 100
LABELS = np.arange(EXAMPLES) % 2
#: The number of correct validation answers by rate. 0.0005 is the published rate of TensLoRA. That of LoRA is
#: in the grid, so LoRA has only two points.
RIGHT = {0.0005: 80, 0.001: 83, 0.01: 84}
TUNING = {"trials": 3, "seeds": [7], "lr": [1e-3, 1e-2], "scale": None, "head_lr": None}

ResultOf = Callable[[Trial, Row], Result | None]


def answered(right: int, seed: str) -> Result:
    answers = LABELS.copy()
    wrong = random.Random(seed).sample(range(EXAMPLES), EXAMPLES - right)
    answers[wrong] = 1 - answers[wrong]
    return Result(score=right / EXAMPLES, answers=answers, labels=LABELS)


def results_of(trial: Trial, row: Row) -> Result:
    if trial.evaluate == "validation":
        return answered(RIGHT[trial.recipe.lr], f"{row.title} {trial.recipe.lr} {trial.seed}")
    return answered(75 + trial.seed + 5 * ("att" in row.title), f"{row.title} {trial.seed}")


@pytest.fixture
def tuned(tmp_path: Path, new_store: NewStore) -> Callable[..., Analysis]:
    """A function that writes the results of a tuned suite and returns their analysis."""

    def make(
        tuning: dict[str, Any] | None = None, result: ResultOf = results_of, name: str = "small"
    ) -> Analysis:
        (tmp_path / name).mkdir()
        uri = new_store(tmp_path / name)
        seeds = {"seeds": [0, 1, 2, 3, 4], "name": name}
        opened = write(uri, (plan := plan_of(**SMALL | seeds | {"tuning": TUNING | (tuning or {})})), result)
        chosen = with_choices(plan, opened)
        write(uri, chosen.of(None), result)
        opened.end(opened.begin_suite(chosen), Status.FINISHED)
        return analyse(read(uri, [name]))

    return make


def test_the_interval_has_the_choice_of_both_methods(tuned: Callable[..., Analysis]) -> None:
    analysis = tuned()
    expected = []
    for title, rates in (("LoRA", (0.001, 0.01)), ("TensLoRA att", (0.0005, 0.001, 0.01))):
        runs = [answered(RIGHT[rate], f"{title} {rate} 7") for rate in rates]
        table = np.array([np.asarray(run.answers) == LABELS for run in runs], dtype=float)
        of_seeds = np.var([(75 + seed) / EXAMPLES for seed in range(5)], ddof=1)
        expected.append(lottery(table.mean(1), np.cov(table) / EXAMPLES + of_seeds * np.eye(len(runs))))
    variances = analysis.evidence.tuning
    # The analysis orders the points in another way, which gives the lottery other draws.
    assert [variances[cell] for cell in sorted(variances)] == pytest.approx(expected, rel=0.1)
    (comparison,) = analysis.blocks[0].comparisons
    assert comparison.effect.error is not None
    assert comparison.effect.error.tuning == pytest.approx(sum(variances.values()))
    outer, inner = comparison.interval, comparison.at_chosen_points
    assert outer is not None
    assert inner is not None
    assert outer[0] < inner[0] < inner[1] < outer[1]
    # A row shows one interval; the files hold the other.
    (line,) = frames(analysis)["comparisons"].to_dict("records")
    assert (line["low_at_chosen_points"], line["high_at_chosen_points"]) == pytest.approx(inner)
    assert line["error_of_tuning"] == pytest.approx(sum(variances.values()) ** 0.5)
    assert "low_at_chosen_points" in json.loads(as_json(analysis, [], []))["tables"]["comparisons"][0]


def test_several_tuning_seeds_lessen_the_noise_of_a_point(tuned: Callable[..., Analysis]) -> None:
    of_one_seed, of_four_seeds = tuned(name="one"), tuned({"seeds": [7, 8, 9, 10]}, name="four")
    for cell, lottery_of_one in of_one_seed.evidence.tuning.items():
        assert 0 < of_four_seeds.evidence.tuning[cell] < lottery_of_one


def test_points_whose_runs_failed_cannot_be_chosen(tuned: Callable[..., Analysis]) -> None:
    def failing(trial: Trial, row: Row) -> Result:
        made = results_of(trial, row)
        lost = trial.evaluate == "validation" and trial.recipe.lr != 0.01
        return dataclasses.replace(made, failure="diverged") if lost else made

    analysis = tuned(result=failing)
    assert set(analysis.evidence.tuning.values()) == {0.0}
    assert not any("cannot be repeated" in note for note in analysis.notes)


def test_a_single_point_leaves_nothing_to_choose(tuned: Callable[..., Analysis]) -> None:
    analysis = tuned({"trials": 1})
    assert set(analysis.evidence.tuning.values()) == {0.0}
    assert any("2 cells of 2" in note and "single" in note for note in analysis.notes)


def test_tuning_that_is_not_stored_is_unknown_and_said(tuned: Callable[..., Analysis]) -> None:
    def unread(trial: Trial, row: Row) -> Result:
        made = results_of(trial, row)
        return dataclasses.replace(made, answers=1 - LABELS) if trial.evaluate == "validation" else made

    analysis = tuned(result=unread)
    assert analysis.evidence.tuning == {}
    assert any("2 cells of 2" in note and "repeated" in note for note in analysis.notes)
    (comparison,) = analysis.blocks[0].comparisons
    assert comparison.interval == comparison.at_chosen_points
