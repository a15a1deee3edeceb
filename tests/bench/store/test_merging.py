"""Tests which runs replace others when results are merged, and which results contradict each other."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tensorbench.methods import UserError
from tensorbench.records.measures import Measure
from tensorbench.records.record import Record
from tensorbench.records.words import PROVENANCE, Status
from tensorbench.store.merging import brings_more, refuse_contradictions


def source(*, adapter: bool) -> Any:
    return SimpleNamespace(has=lambda run, artifact: adapter)


@pytest.mark.parametrize(
    ("coming", "stored", "more"),
    [
        ((True, True), (True, False), True),
        ((True, True), (True, True), False),
        ((True, False), (True, False), False),
    ],
)
def test_a_finished_run_replaces_one_without_its_adapter_alone(
    coming: tuple[bool, bool], stored: tuple[bool, bool], more: bool
) -> None:
    sides = [
        (source(adapter=adapter), Record("run", "trial", Status.FINISHED if done else Status.RUNNING))
        for done, adapter in (coming, stored)
    ]
    assert brings_more(sides[0], sides[1]) is more


@pytest.mark.parametrize(("machine", "refused"), [({}, True), ({"gpu": "NVIDIA H100"}, False)])
def test_validation_losses_of_one_trial_may_differ_on_a_gpu(machine: dict[str, str], refused: bool) -> None:
    tags = {f"{PROVENANCE}{key}": value for key, value in machine.items()}
    metrics = {Measure.SCORE: 0.5, Measure.SELECTED_LOSS: 0.7}
    one = Record("one", "trial", Status.FINISHED, tags=tags, metrics=metrics)
    other = replace(one, run_id="other", metrics={**metrics, Measure.SELECTED_LOSS: 0.8})
    if refused:
        with pytest.raises(UserError, match="other scores or validation losses"):
            refuse_contradictions("toy", {"trial": one}, [other])
    else:
        refuse_contradictions("toy", {"trial": one}, [other])
