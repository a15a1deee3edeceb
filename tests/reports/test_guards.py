"""Tests warnings about ineffective trainings, from records alone."""

from __future__ import annotations

from typing import Any

import pytest

from tensorbench.records.measures import Measure
from tensorbench.reports.cautions import guards
from tensorbench.reports.reading import read

from ..stored import Result
from .made_up import SMALL, Stored, plan_of

SUITE: dict[str, Any] = SMALL | {"methods": ["head_only", *SMALL["methods"]]}
GOOD = {Measure.SELECTED_LOSS: 0.4, Measure.GUESSING_LOSS: 2.3, Measure.ADAPTER_EFFECT: 0.5}
HEAD = {Measure.SELECTED_LOSS: 0.5, Measure.GUESSING_LOSS: 2.3}


def warnings_of(uri: str) -> list[str]:
    (experiment,) = read(uri, ["small"]).experiments
    return list(guards(experiment))


def results_with(stored: Stored, measures: dict[str, dict[str, float]], **changes: Any) -> list[str]:
    """The warnings about a store whose runs have these measures.

    `measures` maps the title of a row to measures of its runs. Other measures have harmless values.
    """

    def result(trial: Any, row: Any) -> Result:
        if row.method == "head only":
            return Result(0.5, 0.5, measures=HEAD)
        return Result(0.6, 0.5, measures=GOOD | measures.get(row.title, {}))

    return warnings_of(stored(result, plan_of(**SUITE | changes)))


def test_trainings_that_worked_have_no_warning(stored: Stored) -> None:
    assert results_with(stored, {}) == []


@pytest.mark.parametrize(
    ("measures", "sign"),
    [
        ({Measure.SELECTED_LOSS: 0.5}, "head alone"),
        ({Measure.ADAPTER_EFFECT: 0.004}, "the adapter changes outputs"),
        ({Measure.SELECTED_LOSS: 0.41, Measure.GUESSING_LOSS: 0.41}, "constant answer"),
    ],
)
def test_ineffective_trainings_are_named(stored: Stored, measures: dict[str, float], sign: str) -> None:
    (warning,) = results_with(stored, {"LoRA": measures})
    assert warning.startswith("digits · tiny-random-vit: ")
    assert sign in warning
    assert "LoRA" in warning
    assert "TensLoRA" not in warning


def test_selection_by_the_score_is_held_against_the_head_by_the_score(stored: Stored) -> None:
    # All methods have the validation score of the head alone, with lower losses.
    (warning,) = results_with(stored, {}, training={"select": "score"})
    assert "validation score" in warning


def test_an_earlier_versions_runs_without_losses_say_nothing_of_them(stored: Stored) -> None:
    assert warnings_of(stored(lambda trial, row: Result(0.6), plan_of(**SUITE))) == []
