"""Where Optuna keeps the studies of searches."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from sqlalchemy.exc import SQLAlchemyError

from bench.store.connect import SQLITE, shown_uri, with_driver
from methods import UserError

#: Seconds between two signs of life of a running trial, and after how many without one it is given up.
HEARTBEAT, SILENCE = 30, 180


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
    options: dict[str, Any] = {"heartbeat_interval": HEARTBEAT, "grace_period": SILENCE}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if not url.startswith(SQLITE):
                return optuna.storages.RDBStorage(url, **options)
            file = Path(url.removeprefix(SQLITE))
            (file.parent / ".tensorbench").mkdir(parents=True, exist_ok=True)
            # Two processes that made the schema at once would break it.
            with FileLock(file.parent / ".tensorbench" / "optuna.lock", timeout=120):
                # Several writers wait for each other so many seconds.
                return optuna.storages.RDBStorage(
                    url, engine_kwargs={"connect_args": {"timeout": 120}}, **options
                )
    except (SQLAlchemyError, ImportError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot use --storage {shown_uri(url)}: {shown_uri(str(error))}") from error
