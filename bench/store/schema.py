"""The tables of a store: those of a SQLite file are made aside, so that no kill leaves half of them.

MLflow makes and upgrades its tables in 70 migrations, which SQLite does not hold in one transaction. Where a
process is killed in between, MLflow cannot go on from what is left.
"""

from __future__ import annotations

import shlex
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import Engine, inspect, literal_column, select, table

from bench.process.files import remove, written_whole

#: Tables that MLflow makes first, and tables in which its migrations put rows.
BEGUN, FILLED_BY_MIGRATIONS = {"experiments", "alembic_version"}, {"alembic_version", "workspaces"}


def ensure_schema(engine: Engine, database: Path, folder: Path) -> None:
    """Makes the tables of a SQLite file that has none yet, or those of a first start that was killed.

    Of a file with results whose tables MLflow is about to upgrade, a copy is kept until `upgraded`. `folder`
    is on the same file system. Only one process at a time may call this.
    """
    from mlflow.store.db.base_sql_model import Base

    database = database.resolve()
    filled = _tables(engine) if database.exists() else {}
    if not filled or _only_begun(filled):
        # Nobody may have the file open that goes.
        engine.dispose()
        _make(database, folder)
    elif not filled.keys() >= Base.metadata.tables.keys() and not _copy_of(database).exists():
        _copy(database)


def upgraded(database: Path) -> None:
    """Removes the copy from before an upgrade that has come to its end."""
    remove(_copy_of(database.resolve()))


def interrupted_upgrade(database: Path) -> str:
    """The command that undoes an upgrade that was killed, as the end of a message; empty without one."""
    copy = _copy_of(database.resolve())
    if not copy.exists():
        return ""
    command = shlex.join(["mv", str(copy), str(database.resolve())])
    return f"; an upgrade of its tables was interrupted, and this undoes it: {command}"


def interrupted_start(engine: Engine) -> str:
    """The commands that clear a server's database of a first start that was killed, likewise.

    PostgreSQL undoes such a start by itself, MySQL does not.
    """
    if not _only_begun(_tables(engine)):
        return ""
    name = engine.dialect.identifier_preparer.quote(str(engine.url.database))
    return (
        "; a first start was interrupted there and left tables without a result, which this clears: "
        f"DROP DATABASE {name}; CREATE DATABASE {name};"
    )


def _tables(engine: Engine) -> dict[str, bool]:
    """Whether each table has rows."""
    # To open a SQLite file also rolls back what a killed process had not committed.
    with engine.connect() as connection:
        return {
            name: connection.execute(select(literal_column("1")).select_from(table(name)).limit(1)).first()
            is not None
            for name in inspect(connection).get_table_names()
        }


def _only_begun(filled: dict[str, bool]) -> bool:
    """Whether these are tables of MLflow's without anything that somebody stored."""
    return filled.keys() >= BEGUN and not any(
        rows for name, rows in filled.items() if name not in FILLED_BY_MIGRATIONS
    )


def _make(database: Path, folder: Path) -> None:
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # A folder of its own: SQLite would play a journal that a kill left beside a file into the next such file.
    aside = folder / "schema"
    remove(aside)
    aside.mkdir()
    made = aside / database.name
    SqlAlchemyStore(f"sqlite:///{made}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()
    made.replace(database)
    remove(aside)


def _copy_of(database: Path) -> Path:
    return database.with_name(f"{database.name}.before-upgrade")


def _copy(database: Path) -> None:
    with (
        written_whole(_copy_of(database)) as copy,
        closing(sqlite3.connect(database)) as source,
        closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
