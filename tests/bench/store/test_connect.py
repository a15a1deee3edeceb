"""Tests opening a store: addresses, tables that a killed process left incomplete, and moved stores."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow.store
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from mlflow.store.db import utils
from mlflow.store.tracking.dbmodels.initial_models import Base
from mlflow.tracking import MlflowClient
from sqlalchemy import create_engine

from tensorbench.methods import UserError
from tensorbench.store import finding, trained
from tensorbench.store.addresses import shown_uri
from tensorbench.store.connect import connect, follow, index_trials, state_folder, with_driver
from tensorbench.store.store import Store

from ...fixtures import Call, NewStore
from ...messages import naming
from .. import crashes
from ..crashes import Step
from ..toy_runs import SHORT, executed
from ..toy_suites import plan, write


def test_a_server_that_accepts_and_never_answers_is_given_up_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr("tensorbench.store.connect.FIRST_ANSWER", 0.2)
    # The system accepts connections to a socket that listens.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match=naming(uri, "no answer within", 0.2)):
            connect(uri, create=False)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:secret@host:5432/db", "postgresql://host:5432/db"),
        ("postgresql://me:se/cr@et@host:5432/db", "postgresql://host:5432/db"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("http://host:5000/a/b", "http://host:5000/a/b"),
        ("postgresql://host/db?user=secret&password=secret", "postgresql://host/db?user=***&password=***"),
        (
            "postgresql://host/db?sslmode=require&sslpassword=secret&connect_timeout=3",
            "postgresql://host/db?sslmode=require&sslpassword=***&connect_timeout=3",
        ),
        ("mysql+pymysql://host/db?passwd=secret%26more", "mysql+pymysql://host/db?passwd=***"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dsecret", "mssql+pyodbc:///?odbc_connect=***"),
        ("http://host/mlflow?access_token=secret", "http://host/mlflow?access_token=***"),
        ("http://host/?API-Key=secret&p%61ssword=secret", "http://host/?API-Key=***&p%61ssword=***"),
        ("cannot reach http://host/?token=secret: refused", "cannot reach http://host/?token=*** refused"),
        ("postgresql:///db?host=/var/run/one", "postgresql:///db?host=/var/run/one"),
        ('FATAL:  role "me" does not exist', "FATAL:  role *** does not exist"),
        ("Access denied for user 'me'@'host'", "Access denied for user ***@'host'"),
    ],
)
def test_an_address_is_shown_without_what_opens_it(uri: str, shown: str) -> None:
    assert shown_uri(uri) == shown


def test_messages_and_folders_do_not_show_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBENCH_CACHE", str(tmp_path))
    address, other_address = (f"postgresql://host/db?password=secret{i}" for i in (1, 2))
    assert "secret" not in str(state_folder(address))
    # Changing the password keeps the folder of waiting records.
    assert state_folder(address) == state_folder(other_address)
    for uri in ("ftp://host/?password=secret", "sqlite:///file.db?password=secret"):
        with pytest.raises(UserError) as error:
            connect(uri, create=True)
        assert "secret" not in str(error.value)


def test_a_run_that_cannot_be_read_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "http://me:secret@host/"

    def refuse(**_: object) -> None:
        raise OSError(f"no answer from {uri}")

    client: Any = SimpleNamespace(search_experiments=refuse)
    monkeypatch.setattr(finding, "connect", lambda *_, **__: client)
    with (
        pytest.raises(UserError, match=naming("http://host/", "no answer")) as error,
        trained.stored_trial(uri, "0123"),
    ):
        pass
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "used"),
    [
        ("postgresql://host/db", "postgresql+psycopg2://host/db"),
        ("postgresql+psycopg://host/db", "postgresql+psycopg://host/db"),
        ("http://host/postgresql://", "http://host/postgresql://"),
    ],
)
def test_plain_postgresql_means_the_driver_of_the_extra(uri: str, used: str) -> None:
    assert with_driver(uri) == used


def test_a_postgresql_server_that_is_down_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(seconds: float) -> None:
        raise AssertionError("MLflow asks again")

    monkeypatch.setattr(utils.time, "sleep", wait)
    with pytest.raises(UserError, match=rf"{re.escape('127.0.0.1:9/x')}.*Connection refused"):
        connect("postgresql://me:secret@127.0.0.1:9/x", create=True)


SUITE: dict[str, Any] = {"methods": ["lora"], "seeds": [0, 1], "training": SHORT}


def begun(folder: Path, new_store: NewStore) -> str:
    """Makes a store in which the first of two trials has run. Returns its URI."""
    folder.mkdir()
    store = Store.create(new_store(folder), "toy")
    executed(store, plan(**SUITE), plan(**SUITE).trials[:1])
    return store.uri


def moved(old: Path, new: Path, how: Callable[[Path, Path], Any]) -> str:
    new.mkdir()
    for name in ("mlflow.db", "mlartifacts"):
        how(old / name, new / name)
    return f"sqlite:///{new / 'mlflow.db'}"


def copied(old: Path, new: Path) -> None:
    (shutil.copytree if old.is_dir() else shutil.copy)(old, new)


def test_a_renamed_store_is_resumed_reported_and_exported(
    tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    begun(tmp_path / "old", new_store)
    uri = moved(tmp_path / "old", tmp_path / "new & other", Path.rename)
    shutil.rmtree(tmp_path / "old")

    ran = call("run", write(tmp_path, **SUITE), "--store", uri)
    assert ran.code == 0, ran.err
    assert "toy: 2 trials, 1 to run" in ran.out
    done = call("report", "toy", "--store", uri, "--out", tmp_path / "report", "--format", "csv")
    assert done.code == 0, done.err
    trial = plan(**SUITE).trials[0].id
    exported = call("export", trial, "--store", uri, "--out", tmp_path / "adapter")
    assert exported.code == 0, exported.err
    # MLflow's own interface finds the artifacts too, and the old folder stays empty.
    client = MlflowClient(uri)
    for record in Store.existing(uri, "toy").records():
        assert {"config.json", "adapter.safetensors"} <= {
            f.path for f in client.list_artifacts(record.run_id)
        }
    assert not (tmp_path / "old").exists()


def test_a_copy_and_its_original_are_two_stores(tmp_path: Path, new_store: NewStore) -> None:
    original = begun(tmp_path / "old", new_store)
    copy = moved(tmp_path / "old", tmp_path / "new", copied)
    before = sorted((tmp_path / "old").rglob("*"))
    executed(Store.create(copy, "toy"), plan(**SUITE), plan(**SUITE).trials[1:])
    for record in Store.existing(copy, "toy").records():
        assert record.artifacts.startswith((tmp_path / "new").as_uri())
    assert sorted((tmp_path / "old").rglob("*")) == before
    (record,) = Store.existing(original, "toy").records()
    assert record.artifacts.startswith((tmp_path / "old").as_uri())


def test_a_database_whose_artifacts_stayed_still_finds_them(tmp_path: Path, new_store: NewStore) -> None:
    begun(tmp_path / "old", new_store)
    (tmp_path / "new").mkdir()
    (tmp_path / "old" / "mlflow.db").rename(tmp_path / "new" / "other.db")
    store = Store.existing(f"sqlite:///{tmp_path / 'new' / 'other.db'}", "toy")
    (record,) = store.records()
    assert store.plan() is not None
    assert record.artifacts.startswith((tmp_path / "old").as_uri())
    # Another path to the same folder is not a move.
    (tmp_path / "link").symlink_to(tmp_path / "old")
    (tmp_path / "new" / "other.db").rename(tmp_path / "old" / "mlflow.db")
    follow(tmp_path / "link" / "mlflow.db")
    assert Store.existing(f"sqlite:///{tmp_path / 'old' / 'mlflow.db'}", "toy").records() == [record]


MIGRATIONS = Path(mlflow.store.__file__).parent / "db_migrations"

processes = pytest.mark.processes


def uri(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def kill_start(folder: Path, *places: float | str, program: str = "create") -> Iterator[Path]:
    """Opens copies of a folder's store, or new ones if it has none, and kills the process that does.

    `places` say at which part of its steps, or at the first step with a name that begins so. Yields the
    folder of each copy.
    """
    steps: list[Step] = []
    for place in (0, *places):
        copy = folder / f"copy-{place}"
        copy.mkdir()
        if (folder / "mlflow.db").exists():
            shutil.copyfile(folder / "mlflow.db", copy / "mlflow.db")
        number = (
            next(step.number for step in steps if step.name.startswith(place))
            if isinstance(place, str)
            else int(place * len(steps))
        )
        started = crashes.start(copy, program, uri(copy), step=number)
        if place:
            assert started.returncode == -signal.SIGKILL, started.output()
            yield copy
        else:
            assert started.returncode == 0, started.output()
            steps = crashes.steps(copy)


def usable(folder: Path) -> list[str]:
    """Adds an experiment to a folder's store. Returns the names of all experiments."""
    client = connect(uri(folder), create=True)
    client.create_experiment("new")
    return sorted(experiment.name for experiment in client.search_experiments())


@processes
def test_a_first_start_that_is_killed_leaves_nothing_in_the_way_of_the_next(tmp_path: Path) -> None:
    for folder in kill_start(tmp_path, 0.1, 0.4, 0.8):
        assert usable(folder) == ["Default", "new"]
        assert not (folder / ".tensorbench" / "mlflow.db" / "schema").exists()


@processes
def test_a_first_start_of_an_earlier_version_that_was_killed_is_made_good(tmp_path: Path) -> None:
    (folder,) = kill_start(tmp_path, 0.5, program="create_by_mlflow")
    copy = folder / "copy.db"
    shutil.copyfile(folder / "mlflow.db", copy)
    with pytest.raises(Exception, match=r"already exists|duplicate column"):
        MlflowClient(f"sqlite:///{copy}").search_experiments()
    assert usable(folder) == ["Default", "new"]


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    assert usable(tmp_path) == ["Default", "new"]


def test_tables_of_somebody_else_stay(tmp_path: Path, empty_store: Path) -> None:
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection, connection:
        connection.execute("DELETE FROM experiments")
        connection.execute("CREATE TABLE notes AS SELECT 'mine' AS note")
    usable(tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        assert connection.execute("SELECT note FROM notes").fetchone() == ("mine",)


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The folder of a store with one experiment and the tables of an earlier MLflow."""
    database = tmp_path / "mlflow.db"
    engine = create_engine(f"sqlite:///{database}")
    Base.metadata.create_all(engine)
    engine.dispose()
    config = Config(MIGRATIONS / "alembic.ini")
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", f"sqlite:///{database}")
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    command.upgrade(config, revisions[25])
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) "
            "VALUES (0, 'Default', 'mlruns/0', 'active'), (1, 'old', 'mlruns/1', 'active')"
        )
    return tmp_path


def test_an_upgrade_keeps_what_is_stored_and_no_copy_of_it(earlier: Path) -> None:
    assert usable(earlier) == ["Default", "new", "old"]
    assert not list(earlier.glob("*before-upgrade*"))


@processes
def test_an_upgrade_that_was_killed_is_undone_by_the_command_that_the_next_start_names(
    earlier: Path,
) -> None:
    (folder,) = kill_start(earlier, "DROP TABLE")
    with pytest.raises(UserError) as refused:
        usable(folder)
    undo = shlex.split(str(refused.value).rpartition("this undoes it: ")[2])
    assert undo[0] == "mv"
    subprocess.run(undo, check=True)
    # In a new process: MLflow in this one still has the removed file open.
    assert crashes.start(folder, "create", uri(folder)).returncode == 0
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        names = connection.execute("SELECT name FROM experiments ORDER BY name").fetchall()
    assert names == [("Default",), ("old",), ("toy",)]


def test_a_file_that_cannot_be_written_is_opened_without_its_index(tmp_path: Path, new_store: Any) -> None:
    database = Path(new_store(tmp_path).removeprefix("sqlite:///"))

    def indices(connection: sqlite3.Connection) -> int:
        query = "SELECT count(*) FROM sqlite_master WHERE name = 'tensorbench_trials'"
        return int(connection.execute(query).fetchone()[0])

    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("DROP INDEX IF EXISTS tensorbench_trials")
        other.execute("BEGIN IMMEDIATE")
        index_trials(database)
        other.execute("ROLLBACK")
        assert indices(other) == 0
        index_trials(database)
        assert indices(other) == 1
