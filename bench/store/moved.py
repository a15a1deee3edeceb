"""A store that was copied or renamed: its artifacts lie beside its database, wherever that is now.

MLflow stores whole paths, also for its own interface and server, which must find what we find. So they are
brought up to date in the database when it is opened, and only where it was moved.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote, urlparse

#: The folder beside a database in which its artifacts lie.
ARTIFACTS = "mlartifacts"


def artifacts_of(database: Path, experiment: str) -> str:
    """The URI under which a new experiment's artifacts are stored."""
    return (database.parent / ARTIFACTS / experiment).absolute().as_uri()


def follow(database: Path) -> None:
    """Brings a database up to date whose artifacts moved along with it.

    An experiment is taken for moved where its folder lies beside the database and is another one than the one
    that is stored. Raises OSError where the database cannot be read or written.
    """
    _forget_places()
    try:
        with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
            stored = connection.execute("SELECT experiment_id, artifact_location FROM experiments").fetchall()
            for experiment, location in stored:
                now = _now(database, location or "")
                if now is not None:
                    _rewrite(connection, experiment, location, now)
    except sqlite3.Error as error:
        raise OSError(f"{error}; its artifacts were moved and cannot be followed") from error


def _now(database: Path, location: str) -> str | None:
    """Where the artifacts of an experiment lie now; None where they lie at `location`, or not beside it."""
    where = urlparse(location)
    _, found, below = unquote(where.path).rpartition(f"/{ARTIFACTS}/")
    if where.scheme not in ("", "file") or not found:
        return None
    stored, beside = Path(unquote(where.path)), database.parent.absolute() / ARTIFACTS / below
    if not beside.is_dir() or (stored.exists() and stored.samefile(beside)):
        return None
    return beside.as_uri()


def _rewrite(connection: sqlite3.Connection, experiment: str, location: str, now: str) -> None:
    for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
        connection.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
            f"WHERE experiment_id = ? AND substr({column}, 1, ?) = ?",
            (now, len(location) + 1, experiment, len(location), location),
        )


def _forget_places() -> None:
    """A copy has the run ids of its original, and MLflow keeps in each process where it found a run."""
    with suppress(ImportError, AttributeError):
        from mlflow.tracking._tracking_service import utils

        utils._artifact_repos_cache.clear()
