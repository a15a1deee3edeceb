"""Tests that nothing is lost or stored twice if the store is full, is unreachable or lacks a run."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

import tensorbench.execution.driver
import tensorbench.store.store
from tensorbench.execution.driver import patiently, pending
from tensorbench.execution.session import session
from tensorbench.methods import UserError
from tensorbench.records.words import Artifact
from tensorbench.store.connect import PATIENCE, StoreError, StoreRefusedError, open_engine
from tensorbench.store.store import Store
from tensorbench.store.writer import TrialRun

from ...messages import naming
from ...stored import begun
from ..toy_runs import SHORT, executed, raising
from ..toy_suites import plan

NewStore = Callable[[Path], str]


@pytest.fixture
def store(tmp_path: Path, new_store: NewStore) -> Store:
    return Store.create(new_store(tmp_path), "toy")


def test_a_database_waits_for_whoever_writes_to_its_file(store: Store) -> None:
    with open_engine(store.uri).connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 1000 * PATIENCE


def test_an_error_of_the_database_is_raised_and_not_printed_too(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(store.uri.removeprefix("sqlite:///"))) as connection:
        connection.execute("ALTER TABLE runs RENAME TO away")
    with pytest.raises(StoreError, match="no such table"):
        store.running()
    assert capsys.readouterr().err == ""


def test_an_unanswered_request_is_not_taken_for_a_missing_file(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(methods=["head_only"], training=SHORT)
    begun(store, made.trials[0], made.rows)
    record = replace(store.records()[0], artifacts="mlflow-artifacts:/1/x/artifacts")
    monkeypatch.setattr(tensorbench.store.store, "download_artifacts", raising(MlflowException("no answer")))
    assert store.read(record, Artifact.PREDICTIONS) is None
    with pytest.raises(UserError, match=naming("config.json", "head only", "no answer")):
        store.read(record, Artifact.CONFIG)
    monkeypatch.setattr(MlflowClient, "list_artifacts", raising(MlflowException("no answer")))
    with pytest.raises(UserError, match=naming("predictions.safetensors")):
        store.read(record, Artifact.PREDICTIONS)


def test_finished_is_written_last(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    places = dict.fromkeys(("log_batch", "log_text", "set_terminated"), MlflowClient)
    for name, place in (places | {"keep_files": tensorbench.store.store}).items():
        real = getattr(place, name)

        def noted(
            client: MlflowClient, run_id: str, *rest: Any, name: str = name, real: Any = real, **more: Any
        ) -> Any:
            calls.append(f"{name} {rest[0]}" if name == "set_terminated" else name)
            return real(client, run_id, *rest, **more)

        monkeypatch.setattr(place, name, noted)
    executed(store, plan(methods=["head_only"], training=SHORT))
    # The last call closes the suite's run.
    assert calls[-2:] == ["set_terminated FINISHED"] * 2
    assert calls[-3] == "keep_files"


def test_a_store_that_fills_up_ends_the_run_and_its_record_is_sent_by_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(methods=["lora", "head_only"], training=SHORT)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tensorbench.execution.driver, "FILE_PATIENCE", 0)
        patch.setattr(tensorbench.store.store, "keep_files", full)
        with pytest.raises(StoreError, match=r"No space left.*1 record.*outbox"):
            executed(store, made)
    # The store shows the run as closed; the waiting record has its real ending.
    assert [record.status for record in store.records()] == ["KILLED"]
    later_store = Store.existing(store.uri, "toy")
    with session(later_store) as at_work:
        assert at_work.sent == 1
    (record,) = store.records()
    assert record.status == "FINISHED"
    assert {file.path for file in store.client.list_artifacts(record.run_id)} == {
        "adapter.safetensors",
        "config.json",
        "predictions.safetensors",
    }
    assert pending(made, store.records()) == [made.trials[1]]
    assert not list(store.outbox.glob("*/*"))


def test_a_store_that_is_away_for_a_while_gets_all_that_was_reported_and_nothing_twice(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(methods=["lora", "head_only"], training={"batch_size": 16, "steps": 60})
    real, calls = MlflowClient.log_batch, []

    def away(self: MlflowClient, run_id: str, **more: Any) -> Any:
        calls.append(more)
        if 2 < len(calls) < 5:
            raise MlflowException("the server is away")
        return real(self, run_id, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", away)
    assert [event.kind for event in executed(store, made)] == ["finished", "finished"]
    for record in store.records():
        assert record.status == "FINISHED"
        losses = store.client.get_metric_history(record.run_id, "train/loss")
        assert sorted(metric.step for metric in losses) == list(range(1, 61))


def test_a_run_that_somebody_deleted_is_refused_and_its_record_put_aside(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(methods=["head_only"], training=SHORT)
    real = TrialRun.end

    def deleted(self: TrialRun, ending: Any) -> None:
        store.client.delete_run(self.run_id)
        real(self, ending)

    with monkeypatch.context() as patch:
        patch.setattr(TrialRun, "end", deleted)
        with pytest.warns(UserWarning, match=naming("'active'", "refused")):
            executed(store, made)
    assert pending(made, store.records()) == list(made.trials)
    with warnings.catch_warnings(), session(store) as at_work:
        warnings.simplefilter("error", UserWarning)
        assert at_work.sent == 0


def test_patient_requests_outlast_an_outage_but_not_a_refusal(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorbench.execution.driver, "LOOK", 0)
    answers: list[Exception | int] = [StoreError("away"), StoreError("away"), 3]

    def ask() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patiently(store, ask) == 3
    answers += [StoreRefusedError("no"), 3]
    with pytest.raises(StoreRefusedError):
        patiently(store, ask)
    monkeypatch.setattr(tensorbench.execution.driver, "FILE_PATIENCE", -1)
    answers.insert(0, StoreError("gone"))
    with pytest.raises(StoreError, match="gone"):
        patiently(store, ask)
