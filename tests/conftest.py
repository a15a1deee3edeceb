"""Fixtures of all tests: the cache, an empty MLflow store to copy, the program called in this process."""

from __future__ import annotations

import os

# Tiny models are fastest on one thread, and subprocesses inherit it. Before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads of a worker wait for one another. While tests keep all cores busy, a thread that waits by spinning
# takes the core that the other needs, and a step of milliseconds takes seconds.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Settings of the user's own programs would colour or wrap the output that tests read, or lead to a store or
# a cluster.
os.environ.pop("COLUMNS", None)
os.environ.pop("FORCE_COLOR", None)
os.environ.pop("TTY_COMPATIBLE", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("RAY_ADDRESS", None)

import gc
import shutil
import signal
import sqlite3
import sys
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

#: Python's own thresholds of garbage collection.
THRESHOLDS = gc.get_threshold()
# Importing and collecting tests makes many objects and hardly any garbage; the default thresholds would add a
# sixth to its time.
gc.set_threshold(100_000, 20, 20)

#: Modules imported since the last freeze, such as an architecture's or a database's, that call for another.
MANY_MODULES = 50

SUITES = Path(__file__).parent.parent / "suites"

#: The file of tests and the number of modules, in units of `MANY_MODULES`, at the last freeze.
LAST_FREEZE = pytest.StashKey[tuple[Path, int]]()


@pytest.hookimpl(wrapper=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """One worker more than cores: two workers leave two cores idle for a third of the time, while tests wait
    for processes, servers and Ray.
    """
    return (yield) + 1


def pytest_collection_finish() -> None:
    gc.set_threshold(*THRESHOLDS)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Keeps modules and fixtures out of garbage collection, which every trial does."""
    now = (item.path, len(sys.modules) // MANY_MODULES)
    if item.config.stash.get(LAST_FREEZE, None) != now:
        gc.collect()
        gc.freeze()
        item.config.stash[LAST_FREEZE] = now


class Ended(NamedTuple):
    """How a call of the program ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this session that shares downloads, but no prepared data, with the user's."""
    if os.environ.get("TENSORBENCH_CACHE"):
        yield
        return
    from bench.machine.cache import cache_dir

    assets = cache_dir() / "assets"
    assets.mkdir(exist_ok=True)
    folder = tmp_path_factory.mktemp("cache")
    (folder / "assets").symlink_to(assets)
    os.environ["TENSORBENCH_CACHE"] = str(folder)
    yield
    del os.environ["TENSORBENCH_CACHE"]


@pytest.fixture(scope="session", autouse=True)
def unsynced_databases() -> None:
    """SQLite that does not wait for the disk, which would be most of a small trial's time.

    A killed process loses nothing: the operating system has what was written. Only a power cut would lose it.
    """
    from sqlalchemy import Engine, event

    @event.listens_for(Engine, "connect")
    def unsynced(connection: Any, _: Any) -> None:
        # A file that is no database is refused when it is read.
        if isinstance(connection, sqlite3.Connection):
            with suppress(sqlite3.Error):
                connection.execute("PRAGMA synchronous = OFF")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's schema, which takes seconds to make."""
    from bench.store.connect import connect

    file = tmp_path_factory.mktemp("store") / "empty.db"
    connect(f"sqlite:///{file}", create=True)
    return file


@pytest.fixture(scope="session")
def new_store(empty_store: Path) -> Callable[[Path], str]:
    """Puts a store of its own into a folder and returns its URI."""

    def make(folder: Path) -> str:
        shutil.copyfile(empty_store, folder / "mlflow.db")
        return f"sqlite:///{folder / 'mlflow.db'}"

    return make


@pytest.fixture(scope="session")
def call() -> Callable[..., Ended]:
    """Calls the program in this process with arguments, as a shell would."""
    import contextlib
    import io

    from bench.cli.program import main

    def program(*arguments: object) -> Ended:
        out, err = io.StringIO(), io.StringIO()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        show = warnings.showwarning
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["tensorbench", *map(str, arguments)])
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    main()
                    code = 0
                except SystemExit as end:
                    code = int(end.code or 0)
                finally:
                    for number, handler in handlers.items():
                        signal.signal(number, handler)
                    warnings.showwarning = show
        return Ended(code, out.getvalue(), err.getvalue())

    return program
