"""Tests that nothing is lost or stored twice if the store is full, is unreachable or lacks a run."""

from __future__ import annotations

import sqlite3
import warnings
from contextlib import closing
from dataclasses import replace
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
from tensorbench.store.connect import PATIENCE, StoreError, StoreRefusedError, database_engine
from tensorbench.store.store import Store
from tensorbench.store.writer import TrialRun

from ...messages import naming
from ...stored import begun
from ..toy_runs import SHORT, executed, raising
from ..toy_suites import plan


def test_a_database_waits_for_whoever_writes_to_its_file(store: Store) -> None:
    with database_engine(store.uri) as engine, engine.connect() as connection:
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
