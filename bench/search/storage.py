"""Where Optuna keeps the studies of searches."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import SQLAlchemyError

from bench.store.connect import SQLITE, shown_uri, with_driver
from methods import UserError

#: Seconds for which several writers of a SQLite file wait for each other.
PATIENCE = 120


def default_storage(store: str) -> str:
    """The study's database: beside a store that is a file, else in the working folder."""
    if not store.startswith(SQLITE):
        return f"{SQLITE}optuna.db"
    return f"{SQLITE}{Path(store.removeprefix(SQLITE)).parent / 'optuna.db'}"


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Optuna's storage at a database URL. Raises UserError for one that cannot be used."""
    url = with_driver(url)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        if not url.startswith(SQLITE):
            return optuna.storages.RDBStorage(url)
        file = Path(url.removeprefix(SQLITE))
        (file.parent / ".tensorbench").mkdir(parents=True, exist_ok=True)
        # Two processes that made the schema at once would break it.
        with FileLock(file.parent / ".tensorbench" / "optuna.lock", timeout=PATIENCE):
            storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": PATIENCE}})
        _take_turns(storage.engine)
        return storage
    except (SQLAlchemyError, ImportError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot use --storage {shown_uri(url)}: {shown_uri(str(error))}") from error


def _take_turns(engine: Engine) -> None:
    """Lets a process read and write a SQLite file without another one in between.

    Optuna takes a trial that waits by reading and then writing it, and locks its row meanwhile, which SQLite
    cannot: two processes would take the same one.
    """

    @event.listens_for(engine, "connect")
    def _(connection: Any, __: Any) -> None:
        # Python's driver would begin a transaction only at the first write.
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    # Those that are open are not listened to.
    engine.dispose()
