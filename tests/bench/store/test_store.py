"""Tests the store: no trial counts twice, and errors say why it cannot be used."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy import create_engine, event
from sqlalchemy.orm import Session

from tensorbench.methods import UserError
from tensorbench.plan.rows import Plan
from tensorbench.records.record import Progress, Record, failed, latest, results
from tensorbench.records.words import RunKind, Status, Tag
from tensorbench.reports.reading import read_experiment
from tensorbench.store import claims, connect
from tensorbench.store.connect import StoreError, storing
from tensorbench.store.finding import find_trial
from tensorbench.store.store import Store
from tensorbench.store.writer import TrialRun, begin_trial

from ...messages import naming
from ...stored import begun
from ..toy_runs import raising
from ..toy_suites import plan


def begin(store: Store, made: Plan, index: int = 0) -> TrialRun:
    trial = made.trials[index]
    rows = [row for row in made.rows if trial.id in row.trials.values()]
    return begun(store, trial, rows, "no-suite-run")


def statuses(store: Store) -> list[str]:
    return [record.status for record in store.records()]


# --- which record counts ---


@pytest.mark.parametrize(
    ("stati", "index"),
    [
        (("FINISHED", "FINISHED"), 0),
        (("KILLED", "FINISHED", "FINISHED"), 1),
        (("FAILED", "FINISHED"), 1),
        (("FINISHED", "FAILED"), 0),
        (("FINISHED", "KILLED"), 0),
        (("FAILED", "FAILED"), 1),
        (("KILLED", "RUNNING"), 1),
        # A killed retry leaves the failure in place, so the same command tries again.
        (("FAILED", "KILLED"), 0),
        (("FAILED", "RUNNING"), 0),
        (("DUPLICATE", "FINISHED"), 1),
        (("FINISHED", "DUPLICATE"), 0),
    ],
)
def test_one_record_of_a_trial_counts(stati: tuple[str, ...], index: int) -> None:
    records = [Record(str(i), "t", Status(status), i, {}, {}) for i, status in enumerate(stati)]
    other = Record("other", "u", Status.FINISHED, 0, {}, {})
    assert latest([other, *records]) == {"t": records[index], "u": other}


def test_only_what_finished_with_a_finite_number_has_a_score() -> None:
    endings = [
        (Status.FINISHED, 0.5),
        (Status.DUPLICATE, 0.6),
        (Status.FAILED, 0.7),
        (Status.FINISHED, nan),
        (Status.FINISHED, inf),
    ]
    records = {
        str(i): Record("", str(i), status, 0, {}, {"score": s}) for i, (status, s) in enumerate(endings)
    }
    records["none"] = Record("", "none", Status.FINISHED, 0, {}, {})
    records["zero"] = Record("", "zero", Status.FINISHED, 0, {}, {"score": 0.0})
    assert [record.score for record in records.values()] == [0.5, None, None, None, None, None, 0.0]
    assert results(records, ["zero", "missing", *records], "score") == [0.0, 0.5, 0.0]


# --- opening ---


def test_two_first_starts_at_once_make_one_experiment(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The other process creates it between our check and our creation.
    real = MlflowClient.create_experiment

    def late(self: MlflowClient, name: str, **options: Any) -> str:
        real(self, name, **options)
        return real(self, name, **options)

    monkeypatch.setattr(MlflowClient, "create_experiment", late)
    assert Store.create(uri, "toy").experiment.name == "toy"


# --- what is stored ---


def test_runs_can_be_filtered_in_mlflow_by_method_task_budget_and_seed(store: Store) -> None:
    made = plan(methods=["lora", "head_only"], seeds=[0, 1])
    for index in range(4):
        begin(store, made, index)
    where = "tags.family = 'lora' and tags.task = 'digits' and tags.budget LIKE '%isoparameters 2%'"
    runs = store.client.search_runs([store.experiment.experiment_id], f"{where} and tags.seed = '1'")
    assert [run.info.run_name for run in runs] == ["LoRA 2 · digits · seed 1"]
    by_param = store.client.search_runs([store.experiment.experiment_id], "params.method.method = 'lora'")
    assert len(by_param) == 2


def test_a_missed_budget_is_stored(store: Store) -> None:
    missed = plan(budgets=[{"parameters": 1000}])
    met = plan(budgets=[{"parameters": 1152}])
    begin(store, missed)
    begin(store, met)
    assert [r.tags["budget_missed"] for r in store.records()] == ["yes", "no"]
    assert '"ratio": 1.152' in store.records()[0].tags["budgets"]


def test_the_plan_of_the_latest_start_is_kept_in_one_run(store: Store) -> None:
    assert store.plan() is None
    experiment = store.experiment.experiment_id
    cut_short = store.client.create_run(experiment, tags={"kind": "suite"}).info.run_id
    # Its driver died before storing the plan.
    assert store.plan() is None
    first = store.begin_suite(plan())
    assert first == cut_short
    store.end(first, Status.KILLED)
    made = plan(methods=["head_only"], closing="the end")
    assert store.begin_suite(made) == first
    assert store.client.get_run(first).info.status == "RUNNING"
    read = store.plan()
    assert read is not None
    assert read.closing == "the end"
    assert [row.trials for row in read.rows] == [{0: made.trials[0].id}]


def test_drivers_that_begin_in_one_moment_share_a_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real, begun = MlflowClient.create_run, []

    def create(self: MlflowClient, *arguments: Any, **named: Any) -> Any:
        if not begun:
            begun.append("")
            begun[0] = Store.existing(store.uri, "toy").begin_suite(plan())
        return real(self, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "create_run", create)
    assert store.begin_suite(plan()) == begun[0]
    assert [run.run_id for run in store.records(RunKind.SUITE)] == begun
    assert store.begin_suite(plan()) == begun[0]


def test_drivers_that_write_a_new_tag_in_one_moment_both_succeed(store: Store) -> None:
    run_id = store.begin("toy").run_id

    def another_driver_writes(session: Session, *_: object) -> None:
        # Between MLflow's look, which finds no such tag, and its insertion.
        if not (written := store.records(RunKind.SUITE)[0].tag(Tag.NOTE)):
            with closing(sqlite3.connect(connect.database_file(store.uri))) as other, other:
                other.execute("INSERT INTO tags VALUES (?, ?, ?)", (Tag.NOTE, "the other's", run_id))
        seen.append(written)

    seen: list[str] = []
    event.listen(Session, "before_flush", another_driver_writes)
    try:
        store.tag(run_id, Tag.NOTE, "this one's")
    finally:
        event.remove(Session, "before_flush", another_driver_writes)
    [run] = store.records(RunKind.SUITE)
    assert (seen, run.tag(Tag.NOTE)) == (["", "the other's"], "this one's")


def test_a_truncated_plan_is_reported_with_its_run(store: Store) -> None:
    run_id = store.begin_suite(plan())
    store.client.log_text(run_id, '{"rows": [', "plan.json")
    with pytest.raises(UserError, match=naming("plan.json", run_id, "broken")):
        store.plan()


def test_more_parameters_and_metrics_than_a_request_takes_are_stored(store: Store) -> None:
    run = begin(store, plan())
    run.start({f"key{i}": i for i in range(250)}, {})
    run.progress(Progress(2500, 2500, 1, [(i, i / 2) for i in range(1, 2501)]))
    history = store.client.get_metric_history(run.run_id, "train/loss")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [
        (i, i / 2) for i in range(1, 2501)
    ]
    assert store.client.get_run(run.run_id).data.params["key249"] == "249"


def test_a_run_s_name_is_as_long_as_every_database_takes(store: Store) -> None:
    made = plan()
    row = made.rows[0].model_copy(update={"method": "m" * 300})
    begin_trial(store, made.trials[0], [row], "accuracy", "none")
    (record,) = store.records()
    assert len(record.name) == 250
    assert record.name.endswith("…")


def test_a_mapping_with_keys_of_a_user_is_one_parameter(store: Store) -> None:
    run = begin(store, plan())
    run.start({"own": {"classes": {"bad?": "poor", "good!": "fine"}, "sizes": {"train": 3}}}, {})
    params = store.client.get_run(run.run_id).data.params
    assert {key: value for key, value in params.items() if key.startswith("own.")} == {
        "own.classes": "{'bad?': 'poor', 'good!': 'fine'}",
        "own.sizes.train": "3",
    }


@pytest.mark.parametrize("error", [MlflowException("no"), OSError(28, "No space left on device")])
def test_a_full_store_is_distinguished_from_a_failing_trial(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run = begin(store, plan())

    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(MlflowClient, "log_batch", full)
    with pytest.raises(StoreError, match=naming("written", "again")):
        run.end(failed("error", "x", "y"))
    assert run.ended


# --- stores that cannot be used ---


@pytest.fixture
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops MLflow from repeating requests to an absent server, since it waits before each repetition."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("./mlruns", "'./mlruns'.*sqlite:///file.db"),
        ("ftp://there", "is not supported"),
        ("sqlite://", "is not supported"),
        ("sqlite:///:memory:", "would be lost"),
        ("sqlite:///", "would be lost"),
        ("sqlite:///{file}/mlflow.db", "store at .*"),
        (
            "sqlite:////proc/nowhere/mlflow.db",
            "/proc/nowhere/mlflow.db: .*No such",
        ),
        ("sqlite:///{file}", "store at .*not a database"),
        ("sqlite:///{folder}", "folder.*mlflow.db"),
        ("sqlite:///{folder}/a?b.db", r"'.*/a\?b.db' .* no '\?' or '%'"),
        ("sqlite:///{folder}/a%20b.db", r"'.*/a%20b.db' .* no '\?' or '%'"),
        ("http://[::1", r"'http://\[::1'"),
        ("http://127.0.0.1:9", "http://127.0.0.1:9"),
    ],
)
def test_a_store_that_cannot_be_is_refused(tmp_path: Path, uri: str, message: str, no_retries: None) -> None:
    file = tmp_path / "file"
    file.write_text("this is no database" * 100)
    with pytest.raises(UserError, match=message) as refused:
        Store.create(uri.format(file=file, folder=tmp_path), "toy")
    assert not re.search("SQL:|sqlalche|HTTPConnection|Max retries", str(refused.value))
    assert list(tmp_path.glob("a*")) == []


@pytest.mark.parametrize("uri", ["http://me:secret@127.0.0.1:9", "http://me:a@secret@127.0.0.1:9"])
def test_no_error_shows_a_store_s_password(uri: str, no_retries: None) -> None:
    assert Store(MlflowClient(uri), Experiment("0", "toy", "", "active"), uri).where == "http://127.0.0.1:9"
    with pytest.raises(UserError, match=naming("tracking server", "http://127.0.0.1:9")) as error:
        Store.create(uri, "toy")
    assert "secret" not in str(error.value)
    # MLflow's own message contains the address.
    with pytest.raises(MlflowException, match="secret") as raw:
        MlflowClient(uri).search_experiments()
    with pytest.raises(StoreError, match=r"127.0.0.1") as error, storing():
        raise raw.value
    assert "secret" not in str(error.value)


def test_a_store_that_fails_while_it_is_read_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorbench.store.store.read_tables", raising(OSError("disk I/O error")))
    said = "experiment 'toy' cannot be read from sqlite:.*: the store could not be read: disk I/O error$"
    with pytest.raises(UserError, match=said):
        read_experiment(store)


def test_a_database_may_be_named_with_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answering:
        def __init__(self, uri: str) -> None:
            self.uri = uri

        def search_experiments(self, **_: object) -> list[object]:
            return []

    monkeypatch.setattr(connect, "MlflowClient", Answering)
    monkeypatch.setattr(connect, "create_engine", lambda *_, **__: create_engine("sqlite://"))
    client: Any = connect.connect("postgresql+psycopg://user@host/base", create=True)
    assert client.uri == "postgresql+psycopg://user@host/base"


def test_a_store_in_a_folder_that_cannot_be_written_to_is_read(
    uri: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests may run as root, whom no folder mode stops.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    assert Store.existing(uri, "toy").records() == []
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_a_deleted_experiment_is_not_written_to(uri: str, store: Store) -> None:
    store.client.delete_experiment(store.experiment.experiment_id)
    with pytest.raises(UserError, match=naming("'toy'", "mlflow experiments restore")):
        Store.create(uri, "toy")


def test_reading_needs_a_store_and_an_experiment_and_makes_neither(
    uri: str, store: Store, tmp_path: Path
) -> None:
    missing = tmp_path / "other" / "mlflow.db"
    with pytest.raises(UserError, match=naming("no store", "suite")):
        Store.existing(f"sqlite:///{missing}", "toy")
    assert not missing.parent.exists()
    with pytest.raises(UserError, match=naming("'toyy'", "'toy'")):
        Store.existing(uri, "toyy")
    assert Store.existing(uri, "toy").experiment.experiment_id == store.experiment.experiment_id


def test_experiments_beyond_what_one_answer_holds_are_found(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = begin(Store.create(uri, "first"), plan()).run_id
    for name in ("second", "third"):
        Store.create(uri, name)
    ask = MlflowClient.search_experiments
    monkeypatch.setattr(
        MlflowClient,
        "search_experiments",
        lambda self, **arguments: ask(self, **arguments | {"max_results": 1}),
    )
    every = ["Default", "first", "second", "third"]
    assert [opened_store.name for opened_store in Store.every(uri)] == every
    assert [left.experiment for left in claims.find_leftovers(store=uri)] == every[1:]
    with pytest.raises(UserError, match=naming("'first'", "third, second, first")):
        Store.existing(uri, "furst")
    store, record = find_trial(uri, run_id)
    assert (store.name, record.run_id) == ("first", run_id)


def test_a_relative_address_is_of_the_folder_in_which_it_is_used(
    tmp_path: Path, new_store: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        new_store(tmp_path / name)
        monkeypatch.chdir(tmp_path / name)
        Store.create("sqlite:///mlflow.db", name)
    assert names_in(tmp_path / "one") == ["one"]
    assert names_in(tmp_path / "two") == ["two"]


def names_in(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "mlflow.db") as connection:
        return [
            name for (name,) in connection.execute("select name from experiments where name != 'Default'")
        ]
