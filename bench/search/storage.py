"""The database in which Optuna keeps searches."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import SQLAlchemyError

from tensorbench.methods import UserError
from tensorbench.store.addresses import shown_uri
from tensorbench.store.connect import SQLITE, with_driver

#: Seconds that writers of the same SQLite file wait for each other.
PATIENCE = 120


def default_storage(store: str) -> str:
    """Returns the default URL of Optuna's database.

    It lies beside the store if the store is a SQLite file, and otherwise in the working folder.
    """
    if not store.startswith(SQLITE):
        return f"{SQLITE}optuna.db"
    return f"{SQLITE}{Path(store.removeprefix(SQLITE)).parent / 'optuna.db'}"


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Opens Optuna's database at a URL. Raises UserError if it cannot be used."""
    url = with_driver(url)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        if not url.startswith(SQLITE):
            return optuna.storages.RDBStorage(url)
        file = Path(url.removeprefix(SQLITE))
        (file.parent / ".tensorbench").mkdir(parents=True, exist_ok=True)
        # Two processes that make the schema at the same time would break it.
        with FileLock(file.parent / ".tensorbench" / "optuna.lock", timeout=PATIENCE):
            storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": PATIENCE}})
        _take_turns(storage.engine)
        return storage
    except (SQLAlchemyError, ImportError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot use --storage {shown_uri(url)}: {shown_uri(str(error))}") from error


def _take_turns(engine: Engine) -> None:
    """Makes every transaction on a SQLite file exclusive.

    To take a waiting trial, Optuna reads and then writes it under a lock on its row. SQLite has no row locks,
    so two processes could take the same trial.
    """

    @event.listens_for(engine, "connect")
    def _(connection: Any, __: Any) -> None:
        # By default, Python's driver begins a transaction only at the first write.
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    # Connections that are already open lack these listeners.
    engine.dispose()
