"""Tests which points of a search count as tried, and which are retried, if their trials do not finish."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState

import tensorbench.execution.inline
import tensorbench.execution.perform
from tensorbench.execution import driver
from tensorbench.execution.inline import Inline
from tensorbench.execution.session import Session, session
from tensorbench.plan.make import cells
from tensorbench.records.measures import Measure
from tensorbench.records.record import Record, lost
from tensorbench.records.words import RunKind, Status, Tag
from tensorbench.search.nested import Nested
from tensorbench.store.store import Store

from ..toy_runs import raising
from ..toy_suites import suite
from .toy_searches import SEARCH, Call, NewStore, prepared, run


def test_a_trial_that_diverges_counts_as_tried(tmp_path: Path, new_store: NewStore, call: Call) -> None:
    section = {"trials": 4, "lr": [1e-3, 1e30]}
    made = run(tmp_path, new_store, call, methods=["lora"], search=section, training={"batch_size": 16})
    assert made.ended.code == 0, made.ended.err
    trials = made.artifact()["trials"]
    assert {(trial["lr"], trial["state"]) for trial in trials} == {(1e-3, "COMPLETE"), (1e30, "FAILED")}
    assert len(trials) == 4
    assert made.artifact()["best"]["lr"] == 1e-3


def test_an_interrupt_leaves_the_point_for_the_next_start(
    tmp_path: Path, new_store: NewStore, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepared(tmp_path, new_store, search={"trials": 2})
    with monkeypatch.context() as patch:
        patch.setattr(tensorbench.execution.perform, "run_trial", raising(KeyboardInterrupt()))
        assert call("search", made.suite, "--store", made.uri).code == 130
    assert made.states() == {"FAIL": 1}
    (lost,) = made.study().trials
    assert call("search", made.suite, "--store", made.uri).code == 0
    tried = made.study().get_trials(states=[TrialState.COMPLETE])
    assert len(tried) == 2
    assert tried[0].user_attrs["key"] == lost.user_attrs["key"]


def test_a_point_that_failed_is_tried_again_only_when_asked(
    tmp_path: Path, new_store: NewStore, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepared(tmp_path, new_store, methods=["lora"], search={"trials": 2})

    def search(*options: str) -> list[str]:
        made.ended = call("search", made.suite, "--store", made.uri, *options)
        return [trial["state"] for trial in made.artifact()["trials"]]

    with monkeypatch.context() as patch:
        patch.setattr(tensorbench.execution.perform, "run_trial", raising(RuntimeError("the disk was full")))
        assert search() == ["FAILED", "FAILED"]
    assert search() == ["FAILED", "FAILED"]
    assert search("--retry-failed") == ["COMPLETE", "COMPLETE"]
    assert made.ended.code == 0
    assert search("--retry-failed") == ["COMPLETE", "COMPLETE"]
    assert sorted(trial["ranks"] for trial in made.artifact()["trials"]) == [[1], [2]]


def test_a_point_whose_run_was_deleted_is_tried_again(
    tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    made = run(tmp_path, new_store, call, methods=["lora"], search={"trials": 2})
    before = {record.trial_id for record in made.store.records()}
    record = next(record for record in made.store.records() if record.tag(Tag.PHASE) == "search")
    made.store.client.delete_run(record.run_id)
    assert call("search", made.suite, "--store", made.uri).code == 0
    assert {record.trial_id for record in made.store.records()} == before
    assert sorted(trial["ranks"] for trial in made.artifact()["trials"]) == [[1], [2]]


def test_a_point_whose_worker_was_lost_is_not_tried_and_comes_back(
    tmp_path: Path, new_store: NewStore, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepared(tmp_path, new_store, methods=["lora"], search={"trials": 2})
    with monkeypatch.context() as patch:
        patch.setattr(tensorbench.execution.inline, "perform", lambda *_: lost("its node died"))
        patch.setattr(driver, "TIMES", 0)
        ended = call("search", made.suite, "--store", made.uri)
    assert (ended.code, "lost with its worker" in ended.err) == (2, True)
    assert made.states() == {"FAIL": 1}
    assert [record.status for record in made.store.records(RunKind.SEARCH)] == ["KILLED"]
    assert call("search", made.suite, "--store", made.uri).code == 0
    assert made.states()["COMPLETE"] == 2


def test_a_parent_run_that_cannot_be_closed_hides_no_interrupt(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((_, cell),) = cells(suite(**SEARCH), "cpu")
    store = Store.create(new_store(tmp_path), "toy")

    def interrupted(at_work: Session) -> None:
        with (
            monkeypatch.context() as patch,
            Nested(cell, RunKind.SEARCH, at_work, Inline("cpu"), lambda *_: nullcontext(print)),
        ):
            patch.setattr(MlflowClient, "set_terminated", raising(MlflowException("the store is away")))
            raise KeyboardInterrupt

    with session(store) as at_work:
        with pytest.raises(KeyboardInterrupt):
            interrupted(at_work)
        assert [record.tags["kind"] for record in store.running()] == ["search"]
    # The end of the driver closes the run.
    assert not store.running()


def test_a_score_that_is_no_number_wins_nothing_and_counts_as_tried(
    tmp_path: Path, new_store: NewStore, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepared(tmp_path, new_store, methods=["lora"], search={"trials": 2})
    with monkeypatch.context() as patch:
        values = dict.fromkeys((Measure.SCORE, Measure.SELECTED_VALIDATION), math.nan)
        unmeasurable = Record(status=Status.FINISHED, metrics={**values, Measure.SECONDS: 1.0})
        patch.setattr(tensorbench.execution.inline, "perform", lambda *_: unmeasurable)
        ended = call("search", made.suite, "--store", made.uri)
    assert (ended.code, "No point finished" in ended.out) == (1, True), ended.err
    assert made.states() == {"PRUNED": 2}
    assert made.artifact()["best"] is None
