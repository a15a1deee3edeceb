"""Opening a tracking store, and what one that cannot be used says."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlparse

from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from bench.process import interrupts
from bench.sources.assets import cache_dir
from methods import UserError

DEFAULT_STORE = "sqlite:///mlflow.db"

SQLITE = "sqlite:///"

DATABASES = ("postgresql", "mysql", "mssql")

#: What MLflow raises where a store cannot be read or written: its own error, the database's, the disk's.
BROKEN_STORE = (MlflowException, SQLAlchemyError, OSError)

#: MLflow's error codes where the store answers and refuses: asking again does not help.
REFUSALS = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED"}


class StoreError(UserError):
    """A result could not be stored. It says nothing about the trial."""


class StoreRefusedError(StoreError):
    """The store answers and refuses: a write to a run that somebody deleted, for example."""


@contextmanager
def storing() -> Iterator[None]:
    """Raises StoreError for what a store raises that cannot be reached. Interrupts wait until this ends."""
    try:
        with interrupts.deferred():
            yield
    except BROKEN_STORE as error:
        refused = isinstance(error, MlflowException) and error.error_code in REFUSALS
        said = shown_uri(str(error))
        raise (StoreRefusedError if refused else StoreError)(
            f"the store could not be written to: {said}; what it lacks runs again at the next start"
        ) from error


def connect(uri: str, *, create: bool) -> MlflowClient:
    """A client of a store that answers.

    Raises UserError where it does not and, unless `create` is set, where there is no store yet.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    uri = with_driver(uri)
    # A database URI may name its driver: mysql+pymysql.
    scheme = urlparse(uri).scheme.partition("+")[0]
    if uri.startswith(SQLITE):
        database = database_file(uri)
        if not database.name or database.name.startswith(":"):
            raise UserError(
                f"store '{shown_uri(uri)}' would be lost with this process; name a file: sqlite:///mlflow.db"
            )
        if "?" in uri or "%" in uri:
            # What comes after a '?' is an option to SQLAlchemy, and it decodes '%20'.
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
            return _open(uri)
        except BROKEN_STORE as error:
            raise UserError(f"cannot use the store at {database}: {error}") from error
    if scheme not in ("http", "https", *DATABASES):
        raise UserError(
            f"store '{shown_uri(uri)}' is not supported: use sqlite:///file.db, a server (http://…) or a "
            "database URI"
        )
    try:
        return _open(uri)
    except BROKEN_STORE as error:
        raise UserError(
            f"the tracking server at {shown_uri(uri)} does not answer: {shown_uri(str(error))}"
        ) from error
    except ModuleNotFoundError as error:
        raise UserError(
            f"store '{shown_uri(uri)}' needs the package {error.name}: "
            "for PostgreSQL, pip install 'tensorpeft-bench[postgres]'"
        ) from error


def _open(uri: str) -> MlflowClient:
    # Two processes that made the schema at once would break it.
    with FileLock(state_folder(uri) / "schema.lock", timeout=120):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def state_folder(uri: str) -> Path:
    """Where this machine keeps what belongs to a store: beside a store that is a file, else in the cache."""
    if uri.startswith(SQLITE):
        folder = database_file(uri).parent / ".tensorbench" / database_file(uri).name
    else:
        where = shown_uri(with_driver(uri))
        safe = "".join(c if c.isalnum() else "_" for c in where.partition("://")[2])[:60]
        folder = cache_dir() / "stores" / f"{safe}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def with_driver(uri: str) -> str:
    """The address with the driver of the extra `postgres` where it names none.

    What a plain `postgresql://` means changed with SQLAlchemy 2.1.
    """
    return re.sub(r"^postgresql://", "postgresql+psycopg2://", uri)


#: Who asks and by which secret: before the host, where a password may hold a slash, and in the query.
_BEFORE_HOST = re.compile(r"://(?:[^/\s:@]*:\S*|[^/\s]*)@")
_IN_QUERY = re.compile(r"([?&;])([^=&;\s]+)=[^&\s]*")
_SECRET = re.compile("user|pass|pwd|token|secret|key|auth|cred|sig|odbc_connect", re.IGNORECASE)


def shown_uri(text: str) -> str:
    """A store's address, or an error that tells it, without the names, passwords and tokens it may hold."""

    def hidden(option: re.Match[str]) -> str:
        before, name = option.groups()
        return f"{before}{name}=***" if _SECRET.search(unquote(name)) else option[0]

    return _IN_QUERY.sub(hidden, _BEFORE_HOST.sub("://", text))


def database_file(uri: str) -> Path:
    return Path(uri.removeprefix(SQLITE))
