"""Tests warnings about ineffective trainings, from records alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tensorbench.methods.validation import validate
from tensorbench.plan.make import make_plan
from tensorbench.plan.rows import Plan
from tensorbench.plan.suite import Suite
from tensorbench.records.measures import Measure
from tensorbench.reports.cautions import guards
from tensorbench.reports.reading import read_experiment

from ..stored import Result, write

NewStore = Callable[[Path], str]

SUITE: dict[str, Any] = {
    "name": "guarded",
    "tasks": ["digits"],
    "backbones": ["tiny-random-vit"],
    "methods": ["head_only", "lora", {"method": "tenslora", "variant": "att"}],
    "budgets": [{"isorank": 2}],
    "seeds": [0, 1],
    "floor": "none",
}
GOOD = {Measure.SELECTED_LOSS: 0.4, Measure.GUESSING_LOSS: 2.3, Measure.ADAPTER_EFFECT: 0.5}
HEAD = {Measure.SELECTED_LOSS: 0.5, Measure.GUESSING_LOSS: 2.3}


def planned(**changes: Any) -> Plan:
    return make_plan(validate(Suite, {**SUITE, **changes}, "suite"))


def results_with(
    folder: Path, new_store: NewStore, measures: dict[str, dict[str, float]], **changes: Any
) -> list[str]:
    """The warnings about a store whose runs have these measures.

    `measures` maps the title of a row to measures of its runs. Other measures have harmless values.
    """
    plan = planned(**changes)

    def result(trial: Any, row: Any) -> Result:
        if row.method == "head only":
            return Result(0.5, 0.5, measures=HEAD)
        return Result(0.6, 0.5, measures=GOOD | measures.get(row.title, {}))

    return list(guards(read_experiment(write(new_store(folder), plan, result))))


def test_trainings_that_worked_have_no_warning(tmp_path: Path, new_store: NewStore) -> None:
    assert results_with(tmp_path, new_store, {}) == []


@pytest.mark.parametrize(
    ("measures", "sign"),
    [
        ({Measure.SELECTED_LOSS: 0.5}, "head alone"),
        ({Measure.ADAPTER_EFFECT: 0.004}, "the adapter changes outputs"),
        ({Measure.SELECTED_LOSS: 0.41, Measure.GUESSING_LOSS: 0.41}, "constant answer"),
    ],
)
def test_ineffective_trainings_are_named(
    tmp_path: Path, new_store: NewStore, measures: dict[str, float], sign: str
) -> None:
    (warning,) = results_with(tmp_path, new_store, {"LoRA": measures})
    assert warning.startswith("digits · tiny-random-vit: ")
    assert sign in warning
    assert "LoRA" in warning
    assert "TensLoRA" not in warning


def test_selection_by_the_score_is_held_against_the_head_by_the_score(
    tmp_path: Path, new_store: NewStore
) -> None:
    # All methods have the validation score of the head alone, with lower losses.
    (warning,) = results_with(tmp_path, new_store, {}, training={"select": "score"})
    assert "validation score" in warning


def test_an_earlier_versions_runs_without_losses_say_nothing_of_them(
    tmp_path: Path, new_store: NewStore
) -> None:
    store = write(new_store(tmp_path), planned(), lambda trial, row: Result(0.6))
    assert list(guards(read_experiment(store))) == []
