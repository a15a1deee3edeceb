"""Methods that cut parameters during training end with their count, and store where they began."""

from __future__ import annotations

from typing import Any

import pytest

from bench.terminal.tables import RowTable
from bench.training.ending import finished
from bench.training.trial import Resources, run_trial
from bench.wire.words import Measure
from methods import UserError

from ..toy_suites import VISION, plan

ADALORA = {"method": "peft", "type": "ADALORA", "config": {"tinit": 1, "tfinal": 2}}


def test_a_trial_ends_with_the_planned_count_and_stores_both() -> None:
    planned = plan(VISION, methods=[ADALORA])
    (row,), (trial,) = planned.rows, planned.trials
    outcome = run_trial(trial, Resources("cpu"), lambda progress: None)
    assert row.peak is not None
    assert row.within
    assert sum(value.numel() for value in outcome.adapter.values()) == row.parameters
    metrics = finished(outcome).metrics
    assert metrics[Measure.ADAPTER_PARAMETERS] == row.parameters < row.peak
    assert metrics[Measure.PEAK_PARAMETERS] == row.peak


@pytest.mark.parametrize("kind", [int, float], ids=["planned", "from a frame"])
def test_a_table_shows_both_counts(kind: type) -> None:
    (row,) = plan(VISION, methods=[ADALORA]).rows
    table = RowTable("")
    table.add(row.planned().model_copy(update={"peak": kind(row.peak or 0)}))
    assert list(table.table.columns[2].cells)[-1] == f"{row.parameters:,} (peak {row.peak:,})"


def test_what_cuts_nothing_stores_no_peak() -> None:
    (row,) = plan(VISION).rows
    assert row.peak is None


@pytest.mark.parametrize("training", [{"epochs": 1}, {"steps": 4}], ids=["epochs of a known length", "steps"])
def test_a_plan_refuses_a_training_that_is_too_short(training: dict[str, Any]) -> None:
    method = {**ADALORA, "config": {"tinit": 2, "tfinal": 2}}
    with pytest.raises(UserError, match=r"methods\.0: .* at least 5 optimizer steps \(got 4\)"):
        plan(VISION, methods=[method], training={"batch_size": 16, **training})
