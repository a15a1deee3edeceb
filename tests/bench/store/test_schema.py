"""A store's tables: a first start or an upgrade that is killed on the way breaks nothing for good."""

from __future__ import annotations

import shlex
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Literal

import mlflow.store
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from mlflow.store.tracking.dbmodels.initial_models import Base
from mlflow.tracking import MlflowClient
from sqlalchemy import create_engine

from bench.store.connect import connect
from methods import UserError
from tools.stress.scenarios import first_killed, first_statements

MIGRATIONS = Path(mlflow.store.__file__).parent / "db_migrations"

processes = pytest.mark.processes


def uri(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def statements(folder: Path, how: Literal["bench", "mlflow"]) -> int:
    """How many statements it takes to open the store of a folder; one that is there stays as it is."""
    scale = folder / "scale"
    scale.mkdir()
    if (folder / "mlflow.db").exists():
        shutil.copyfile(folder / "mlflow.db", scale / "mlflow.db")
    return first_statements(scale, uri(scale), how)


def usable(folder: Path) -> list[str]:
    """The experiments of the store, and of one that is added."""
    client = connect(uri(folder), create=True)
    client.create_experiment("new")
    return sorted(experiment.name for experiment in client.search_experiments())


@processes
def test_a_first_start_that_is_killed_leaves_nothing_in_the_way_of_the_next(tmp_path: Path) -> None:
    count = statements(tmp_path, "bench")
    for share in (0.1, 0.4, 0.8):
        folder = tmp_path / str(share)
        folder.mkdir()
        first_killed(folder, uri(folder), int(share * count))
        assert usable(folder) == ["Default", "new"]
        assert not (folder / ".tensorbench" / "mlflow.db" / "schema").exists()


@processes
def test_a_first_start_of_an_earlier_version_that_was_killed_is_made_good(tmp_path: Path) -> None:
    first_killed(tmp_path, uri(tmp_path), statements(tmp_path, "mlflow") // 2, "mlflow")
    copy = tmp_path / "copy.db"
    shutil.copyfile(tmp_path / "mlflow.db", copy)
    with pytest.raises(Exception, match=r"already exists|duplicate column"):
        MlflowClient(f"sqlite:///{copy}").search_experiments()
    assert usable(tmp_path) == ["Default", "new"]


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
    """The folder of a store with one experiment, whose tables are those of an earlier MLflow."""
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
    first_killed(earlier, uri(earlier), int(0.4 * statements(earlier, "bench")))
    with pytest.raises(UserError) as refused:
        usable(earlier)
    undo = shlex.split(str(refused.value).rpartition("this undoes it: ")[2])
    assert undo[0] == "mv"
    subprocess.run(undo, check=True)
    # Not in this process, in which MLflow still has the file open that went.
    first_statements(earlier, uri(earlier))
    with closing(sqlite3.connect(earlier / "mlflow.db")) as connection:
        names = connection.execute("SELECT name FROM experiments ORDER BY name").fetchall()
    assert names == [("Default",), ("old",), ("stress",)]
