"""Tests reading records from MLflow's tables directly: they equal those that MLflow's client returns.

If the tables are not as expected, the client is used instead.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from mlflow.store.tracking.dbmodels import models
from sqlalchemy import Engine, event

from tensorbench.records.record import Progress, Record, failed
from tensorbench.records.words import RunKind, Tag
from tensorbench.store import connect, queries
from tensorbench.store.connect import StoreError
from tensorbench.store.queries import read_tables
from tensorbench.store.store import Store
from tensorbench.store.writer import TrialRun

from ...stored import begun
from ..toy_suites import plan


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> Store:
    """A store with a suite's run and trials that are running, failed and deleted."""
    opened = Store.create(new_store(tmp_path_factory.mktemp("tables")), "toy")
    made = plan(methods=["lora", "head_only"])

    def begin(index: int) -> TrialRun:
        rows = [row for row in made.rows if made.trials[index].id in row.trials.values()]
        return begun(opened, made.trials[index], rows, "no-suite-run")

    opened.begin_suite(made)
    begin(0).progress(Progress(1, 1, 1, [(1, 0.5)], 0.25, float("nan")))
    begin(1).end(failed("error", "it broke", "trace"))
    begin(1)
    opened.client.delete_run(begin(0).run_id)
    return opened


def shown(records: list[Record]) -> list[str]:
    """Converts records to texts, because NaN differs from itself."""
    return [str(asdict(record)) for record in records]


def of_the_client(store: Store, kind: RunKind) -> list[str]:
    return shown(store._find(f"tags.{Tag.KIND} = '{kind}'"))


def test_records_from_the_tables_equal_those_of_the_client(store: Store) -> None:
    for kind in RunKind:
        records = read_tables(store.uri, store.experiment_id, kind)
        assert records is not None
        assert shown(records) == of_the_client(store, kind)
    assert [record.status for record in store.records()] == ["RUNNING", "FAILED", "RUNNING"]
    assert len(store.records(RunKind.SUITE)) == 1


def test_all_pages_of_the_client_are_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = of_the_client(store, RunKind.TRIAL)
    monkeypatch.setattr(queries, "PAGE", 1)
    assert of_the_client(store, RunKind.TRIAL) == expected


def test_the_runs_of_a_trial_are_found_by_an_index(store: Store) -> None:
    trial = store.records()[0].trial_id
    sent: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, values: Any, *_: object) -> None:
        sent.append((statement, values))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        runs = store.records(trial_id=trial)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert {run.trial_id for run in runs} == {trial}
    searches = [(statement, values) for statement, values in sent if trial in values]
    with closing(sqlite3.connect(store.uri.removeprefix("sqlite:///"))) as connection:
        for statement, values in searches:
            steps = connection.execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
            assert any("tensorbench_trials" in step[-1] for step in steps), steps
    assert searches


@pytest.mark.parametrize("changed", ["gone", "without a column"])
def test_unknown_tables_are_read_through_the_client(
    store: Store, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    expected = shown(store.records())
    if changed == "gone":
        monkeypatch.delattr(models, "SqlLatestMetric")
    else:
        columns = SimpleNamespace(run_uuid=models.SqlRun.run_uuid)
        monkeypatch.setattr(models, "SqlRun", columns)
    assert read_tables(store.uri, store.experiment_id, RunKind.TRIAL) is None
    assert shown(store.records()) == expected


def test_the_client_gives_the_same_curves_one_by_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (record.run_id for record in store.records())
    requests: list[tuple[Any, ...]] = [(), ("train/loss", [third, second, first]), ("train/loss", [second])]
    frames = [store.curves(*request) for request in requests]
    assert [len(frame) for frame in frames] == [3, 1, 0]
    monkeypatch.delattr(models, "SqlMetric")
    for request, frame in zip(requests, frames, strict=True):
        pd.testing.assert_frame_equal(store.curves(*request), frame)


def test_a_database_that_is_locked_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "PATIENCE", 0)
    lock = sqlite3.connect(store.uri.removeprefix("sqlite:///"), isolation_level=None)
    lock.execute("begin exclusive")
    try:
        with pytest.raises(StoreError, match="database is locked"):
            store.records()
    finally:
        lock.close()
    assert len(store.records()) == 3


def test_a_database_that_is_away_is_asked_once_and_says_so() -> None:
    uri = "postgresql+psycopg2://me:secret@127.0.0.1:9/away"
    # The client, which would retry, has no server either.
    client: Any = SimpleNamespace(tracking_uri=uri)
    experiment: Any = SimpleNamespace(experiment_id="1")
    with pytest.raises(StoreError, match="Connection refused") as error:
        Store(client, experiment, uri).records()
    assert "secret" not in str(error.value)
