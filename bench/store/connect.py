"""Opens a tracking store: completes its tables, and follows its artifacts if they were moved.

MLflow makes and upgrades its tables in 70 migrations, which are not one transaction in SQLite. If a process
is killed in between, MLflow cannot continue. So the tables of a SQLite file are made in a temporary file,
which is moved to its final name when it is complete. MLflow also stores absolute paths of artifacts. Opening
a copied or renamed database updates them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import urlparse

from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from requests.exceptions import ChunkedEncodingError, RetryError
from sqlalchemy import Engine, create_engine, inspect, literal_column, select, table
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError

from tensorbench.machine import interrupts
from tensorbench.machine.cache import cache_dir
from tensorbench.machine.files import remove, written_whole
from tensorbench.methods import UserError
from tensorbench.store import DEFAULT_STORE, FIRST_ANSWER, mlflow_internals
from tensorbench.store.addresses import shown_uri
from tensorbench.store.artifacts import moved_to

SQLITE = "sqlite:///"

#: Seconds to wait while another process writes to a SQLite file. SQLite's default of 5 was too short for
#: several drivers on one file; MLflow's sessions wait 20.
PATIENCE = 60

#: The errors that MLflow raises if a store cannot be read or written: its own, the database's or the disk's.
BROKEN_STORE = (MlflowException, SQLAlchemyError, OSError)

#: MLflow's error code if a server reports that its database does not answer.
BUSY = "TEMPORARILY_UNAVAILABLE"

#: MLflow's error codes for a request that the store refuses, and would refuse again.
REFUSALS = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED"}


@contextmanager
def database_engine(uri: str) -> Iterator[Engine]:
    """A context with a SQLAlchemy engine of a store's database, for queries that do not go through MLflow."""
    engine = create_engine(uri, connect_args={"timeout": PATIENCE} if uri.startswith(SQLITE) else {})
    try:
        yield engine
    finally:
        engine.dispose()


class StoreError(UserError):
    """The store could not be read or written. A trial that could not be stored may still have succeeded."""


class StoreRefusedError(StoreError):
    """The store refused a request, such as a write to a deleted run."""


class StoreFailedError(StoreError):
    """The store reported an internal failure.

    If one record fails again and again while others are stored, this record cannot be stored at all.
    """


#: Attempts at a request that failed for a passing reason.
ATTEMPTS = 5
#: MLflow's message if a server's answer of unknown length ends early.
NO_JSON = "not in a valid JSON format"
#: The end of SQLAlchemy's message that a row exists already. It is the same for every database and for
#: servers.
NOT_UNIQUE = f"/{IntegrityError.code})"

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an exception and then its causes. Yields nothing for None."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str:
    """Returns the text of an error without secrets. For a database's error, omits the SQL statement."""
    # Our own OSErrors already state the reason and the remedy.
    causes = () if isinstance(error, OSError) else chain(error)
    database = next((cause.orig for cause in causes if isinstance(cause, DBAPIError) and cause.orig), None)
    return shown_uri(str(database or error).strip())


def asking_again(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorates a function so that it is called again if it failed for a passing reason.

    The function must be safe to repeat, since the store may have carried out the first request. MLflow itself
    repeats requests without an answer, but not those whose answer arrived incomplete. Nor does it repeat the
    insertion of a tag that another driver inserted just after MLflow had found none.
    """

    @wraps(function)
    def call(*args: Parameters.args, **named: Parameters.kwargs) -> Result:
        for _ in range(ATTEMPTS - 1):
            try:
                return function(*args, **named)
            except BROKEN_STORE as error:
                causes = list(chain(error))
                texts = " ".join(map(str, causes))
                incomplete = any(isinstance(cause, ChunkedEncodingError) for cause in causes)
                if not (incomplete or NO_JSON in texts or NOT_UNIQUE in texts):
                    raise
        return function(*args, **named)

    return call


@contextmanager
def storing(*, reads: bool = False) -> Iterator[None]:
    """A context in which errors of the store become StoreError or a subclass. It also delays interrupts.

    `reads` means that nothing is written in it.
    """
    try:
        with interrupts.deferred():
            yield
    except BROKEN_STORE as error:
        said, rest = "written to", "; what it lacks runs again at the next start"
        if reads:
            said, rest = "read", ""
        raise _kind(error)(f"the store could not be {said}: {_reason(error)}{rest}") from error


def _kind(error: Exception) -> type[StoreError]:
    if not isinstance(error, MlflowException):
        return StoreError
    if error.error_code in REFUSALS:
        return StoreRefusedError
    # The server's own error. Gateways use other codes; for artifacts, the server's disk may be full.
    if any(isinstance(cause, RetryError) and "too many 500" in str(cause) for cause in chain(error)):
        return StoreError if "/mlflow-artifacts/" in str(error) else StoreFailedError
    away = any(isinstance(cause, OSError | OperationalError | InterfaceError) for cause in chain(error))
    return StoreError if away or error.error_code == BUSY else StoreFailedError


def insisting(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorates a function with `asking_again`, and runs it in the context `storing`."""
    return storing()(asking_again(function))


def connect(uri: str, *, create: bool) -> MlflowClient:
    """Connects to a store, makes sure that it answers, and returns MLflow's client.

    Raises UserError if the address is malformed or not supported, if the store does not answer, or if the
    driver of PostgreSQL is not installed. If the store is a file that does not exist, `create` decides
    whether it is created or UserError is raised.
    """
    mlflow_internals.quiet()
    if not uri:
        raise UserError(
            f"--store '' names no store: use {DEFAULT_STORE}, a server (http://…) or postgresql://…"
        )
    uri = with_driver(uri)
    try:
        # A database URI may name its driver, as in postgresql+psycopg2.
        scheme = urlparse(uri).scheme.partition("+")[0]
    except ValueError as error:
        raise UserError(f"store '{shown_uri(uri)}' is no address: {error}") from error
    if uri.startswith(SQLITE):
        database = database_file(uri)
        if not database.name or database.name.startswith(":"):
            raise UserError(
                f"store '{shown_uri(uri)}' would be lost with this process; name a file: sqlite:///mlflow.db"
            )
        # MLflow caches open stores by address, even if the working folder has changed since.
        absolute = f"{SQLITE}{database.absolute()}"
        if "?" in uri or "%" in absolute:
            # SQLAlchemy reads options after '?' and decodes '%20', so a path cannot contain these.
            raise UserError(
                f"store '{shown_uri(uri)}' cannot be named so: the path of a SQLite file has no '?' or '%'"
            )
        if os.path.isdir(database):
            raise UserError(
                f"the store {database} is a folder; name a file in it: {SQLITE}{database / 'mlflow.db'}"
            )
        if not create and not database.exists():
            raise UserError(f"there is no store at {database}; run a suite first, or name it with --store")
        try:
            return _open(absolute)
        except BROKEN_STORE as error:
            undo = interrupted_upgrade(database)
            raise UserError(f"cannot use the store at {database}: {_reason(error)}{undo}") from error
    if scheme not in ("http", "https", "postgresql"):
        raise UserError(
            f"store '{shown_uri(uri)}' is not supported: use sqlite:///file.db, a server (http://…) or "
            "postgresql://…"
        )
    try:
        if scheme == "postgresql":
            # MLflow would retry an unreachable server ten times, for more than a minute.
            with database_engine(uri) as engine:
                engine.connect().close()
        return _open(uri)
    except BROKEN_STORE as error:
        # MLflow's message repeats the address, inside messages of the libraries that it calls.
        *_, cause = chain(error)
        reason = _reason(cause if isinstance(cause, OSError) else error)
        raise UserError(f"the tracking server at {shown_uri(uri)} does not answer: {reason}") from error
    except ModuleNotFoundError as error:
        raise UserError(
            f"store '{shown_uri(uri)}' needs the package {error.name}, which is missing: "
            "pip install 'tensorpeft-bench[postgres]'"
        ) from error


@asking_again
def _open(uri: str) -> MlflowClient:
    if read_only(uri):
        client = _client(uri)
        follow(database_file(uri))
        return client
    folder = state_folder(uri)
    # Two processes that make the schema at the same time would break it.
    with FileLock(folder / "schema.lock", timeout=120):
        if not uri.startswith(SQLITE):
            return _client(uri)
        database = database_file(uri)
        with database_engine(uri) as engine:
            ensure_schema(engine, database, folder)
        client = _client(uri)
        # An upgrade has completed.
        remove(_copy_of(database))
        follow(database)
        index_trials(database)
    return client


def read_only(uri: str) -> bool:
    """Whether a store is in a folder that cannot be written to, such as an archive."""
    if not uri.startswith(SQLITE):
        return False
    database = database_file(uri)
    return database.exists() and not os.access(database.parent, os.W_OK)


def _client(uri: str) -> MlflowClient:
    """Makes MLflow's client for a store that answers.

    Raises TimeoutError if a server does not answer within `FIRST_ANSWER` seconds. MLflow itself would repeat
    the request, for two minutes in all.
    """
    client, answer = MlflowClient(uri), Future[object]()

    def ask() -> None:
        try:
            answer.set_result(client.search_experiments(max_results=1))
        except Exception as error:
            answer.set_exception(error)

    if uri.startswith("http"):
        threading.Thread(target=ask, daemon=True).start()
        if not wait([answer], FIRST_ANSWER).done:
            raise TimeoutError(f"no answer within {FIRST_ANSWER:g} seconds")
    else:
        ask()
    answer.result()
    return client


def state_folder(uri: str) -> Path:
    """Returns the folder on this machine for waiting records and locks of a store. Makes it if missing.

    It is beside a SQLite file. For other stores it is in the cache.
    """
    if uri.startswith(SQLITE):
        folder = database_file(uri).parent / ".tensorbench" / database_file(uri).name
    else:
        where = shown_uri(with_driver(uri))
        safe = "".join(c if c.isalnum() else "_" for c in where.partition("://")[2])[:60]
        folder = cache_dir() / "stores" / f"{safe}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def with_driver(uri: str) -> str:
    """Adds the driver psycopg2, from the extra `postgres`, to a PostgreSQL address that names no driver.

    Otherwise SQLAlchemy would choose the driver, and its choice changed in version 2.1.
    """
    return re.sub(r"^postgresql://", "postgresql+psycopg2://", uri)


def database_file(uri: str) -> Path:
    return Path(uri.removeprefix(SQLITE))


#: Tables that MLflow makes first, and tables that its migrations fill with rows.
BEGUN, FILLED_BY_MIGRATIONS = {"experiments", "alembic_version"}, {"alembic_version", "workspaces"}


def ensure_schema(engine: Engine, database: Path, folder: Path) -> None:
    """Makes the tables of a SQLite file that has none, or that has only some after a killed first start.

    A file with results that lacks tables of the installed MLflow is copied, since MLflow will upgrade it.
    `folder` is for temporary files and must be on the database's file system. Only one process at a time may
    call this function.
    """
    database = database.resolve()
    #: Whether each table has rows. Opening a file also rolls back uncommitted changes of a killed process.
    filled: dict[str, bool] = {}
    if database.exists():
        with engine.connect() as connection:
            for name in inspect(connection).get_table_names():
                filled[name] = bool(
                    connection.scalar(select(literal_column("1")).select_from(table(name)).limit(1))
                )
    results = any(has_rows for name, has_rows in filled.items() if name not in FILLED_BY_MIGRATIONS)
    if not filled or (filled.keys() >= BEGUN and not results):
        # No process may have the replaced file open.
        engine.dispose()
        # A new folder, since SQLite would apply a killed process's journal to the next file of the same name.
        aside = folder / "schema"
        remove(aside)
        aside.mkdir()
        made = aside / database.name
        mlflow_internals.make_tables(made)
        made.replace(database)
        remove(aside)
    elif not filled.keys() >= mlflow_internals.tables().keys() and not _copy_of(database).exists():
        with (
            written_whole(_copy_of(database)) as copy,
            closing(sqlite3.connect(database)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)


def interrupted_upgrade(database: Path) -> str:
    """Returns the end of an error message: the command that undoes an upgrade that was killed.

    Empty if no upgrade was killed.
    """
    copy = _copy_of(database)
    if not copy.exists():
        return ""
    command = shlex.join(["mv", str(copy), str(database.resolve())])
    return f"; an upgrade of its tables was interrupted, and this undoes it: {command}"


def _copy_of(database: Path) -> Path:
    database = database.resolve()
    return database.with_name(f"{database.name}.before-upgrade")


#: The statement that adds an index of trial ids. With this index, the runs of a trial are found without
#: reading the tags of all runs. MLflow has no index of the values of tags.
INDEX = "CREATE INDEX IF NOT EXISTS tensorbench_trials ON tags (value) WHERE key = 'trial_id'"


def index_trials(database: Path) -> None:
    """Adds an index of trial ids to a SQLite file that lacks it.

    A file that is read-only, or locked at this moment, stays without one: trials are found more slowly then.
    """
    with (
        suppress(sqlite3.Error),
        closing(sqlite3.connect(database, timeout=0)) as connection,
    ):
        connection.execute(INDEX)


def follow(database: Path) -> None:
    """Updates the artifact paths of a database that was moved together with its artifacts.

    An experiment counts as moved if its folder exists beside the database and differs from the stored one.
    Raises OSError if the database cannot be read or written.
    """
    mlflow_internals.forget_places()
    try:
        with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
            stored = connection.execute("SELECT experiment_id, artifact_location FROM experiments").fetchall()
            for experiment, location in stored:
                now = moved_to(database, location or "")
                if now is None:
                    continue
                for name, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
                    connection.execute(
                        f"UPDATE {name} SET {column} = ? || substr({column}, ?) "
                        f"WHERE experiment_id = ? AND substr({column}, 1, ?) = ?",
                        (now, len(location) + 1, experiment, len(location), location),
                    )
    except sqlite3.Error as error:
        raise OSError(f"{error}; its artifacts were moved and cannot be found") from error
