"""Tests reading a SQLite store without MLflow: it holds what MLflow's client says that it holds."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tensorbench.records.words import RunKind
from tensorbench.reports.contents import contents
from tensorbench.store.artifacts import ARTIFACTS
from tensorbench.store.sqlite_file import stored_runs
from tensorbench.store.store import Store

from ...stored import Result, write
from ..toy_suites import plan

NAME = "mlflow.db"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of a suite with finished and missing trials, an empty experiment and a deleted one."""
    made = plan(methods=["lora", "head_only"], seeds=[0, 1])
    first = made.trials[0].id
    (tmp_path / "first").mkdir()
    uri = f"sqlite:///{tmp_path / 'first' / NAME}"
    opened = write(uri, made, lambda trial, _: None if trial.id == first else Result(score=0.5))
    Store.create(uri, "empty")
    gone = Store.create(uri, "gone")
    gone.client.delete_experiment(gone.experiment_id)
    return opened


def _file(store: Store) -> Path:
    return Path(store.uri.removeprefix("sqlite:///"))


def test_runs_equal_those_that_mlflow_gives(store: Store) -> None:
    runs = stored_runs(_file(store))
    assert runs is not None
    assert [each.name for each in runs] == [each.name for each in Store.every(store.uri)]
    (own,) = (each for each in runs if each.name == store.name)
    for kind in RunKind:
        assert own.records(kind) == store.records(kind)
    assert own.plan() == store.plan()


def test_artifacts_of_a_moved_store_are_found_and_the_file_stays_as_it_is(
    store: Store, tmp_path: Path
) -> None:
    there = (tmp_path / "first").rename(tmp_path / "second") / NAME
    before = there.read_bytes()
    (own,) = (each for each in stored_runs(there) or () if each.name == store.name)
    assert own.plan() is not None
    assert all(str(there.parent / ARTIFACTS) in record.artifacts for record in own.records())
    assert there.read_bytes() == before


@pytest.mark.parametrize(
    "change", ["ALTER TABLE tags RENAME COLUMN value TO text", "DROP TABLE latest_metrics"]
)
def test_unknown_tables_are_left_to_mlflow(store: Store, change: str) -> None:
    with closing(sqlite3.connect(_file(store))) as connection, connection:
        connection.execute("DROP INDEX tensorbench_trials")
        connection.execute(change)
    assert stored_runs(_file(store)) is None


def test_a_file_that_is_no_database_is_left_to_mlflow(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("no database, " * 100)
    assert stored_runs(tmp_path / NAME) is None


def test_the_contents_are_the_same_with_and_without_mlflow(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = contents(store.uri)
    monkeypatch.setattr("tensorbench.reports.contents.stored_runs", lambda database: None)
    assert contents(store.uri) == counted
    assert [(each.experiment, each.complete, each.missing) for each in counted] == [(store.name, 3, 1)]
