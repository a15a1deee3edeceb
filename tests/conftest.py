"""Fixtures that all tests share, such as a cache, an empty MLflow store, and calls of the program."""

from __future__ import annotations

import os

# Tiny models are fastest on one thread. Set before anything imports torch, and inherited by subprocesses.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A worker's threads must not wait by spinning: while tests keep all cores busy, that blocks the core the
# other thread needs and makes steps of milliseconds take seconds.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ray gives its workers a niceness of 15: beside busy tests one that imports torch waits for minutes.
os.environ.setdefault("RAY_worker_niceness", "0")
# Removes the user's settings that would colour or wrap output, or lead to a store or cluster.
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
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

#: A file system in memory, and the free bytes on it that the tests need.
MEMORY, ROOM = Path("/dev/shm"), 4 * 2**30
# Thousands of stores are made and thrown away: on a disk that takes milliseconds to confirm each write,
# tests wait for it a tenth of their time.
if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK):
    system = os.statvfs(MEMORY)
    # Tests compile and run programs, which some containers forbid there.
    if system.f_bavail * system.f_frsize > ROOM and not system.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None

#: Python's own thresholds of garbage collection.
THRESHOLDS = gc.get_threshold()
# Importing and collecting tests creates many objects and little garbage; with the default thresholds they
# would take a sixth longer.
gc.set_threshold(100_000, 20, 20)

#: Objects are frozen again when a test file begins, or when about this many more modules have been imported.
#: A model or a database imports as many.
MANY_MODULES = 50

SUITES = Path(__file__).parent.parent / "suites"

#: The test file at the last freeze, and the number of modules then, in units of `MANY_MODULES`.
LAST_FREEZE = pytest.StashKey[tuple[Path, int]]()


#: The markers of tests that do not belong to the plain command's.
LATER = ("kinds", "processes", "ray", "postgres", "browser", "slurm", "gpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tier",
        choices=("first", "others", "all"),
        help="first: what pytest runs without arguments; others: the rest. Default: all of the given paths.",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Workers get paths and options, and do not learn that the paths are those of the configuration.
    if config.option.tier is None and config.args_source == pytest.Config.ArgsSource.TESTPATHS:
        config.option.tier = "first"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.tier not in ("first", "others"):
        return
    paths = [config.rootpath / path for path in config.getini("testpaths")]
    first, others = [], []
    for item in items:
        later = any(map(item.get_closest_marker, LATER)) or not any(map(item.path.is_relative_to, paths))
        (others if later else first).append(item)
    taken, left = (first, others) if config.option.tier == "first" else (others, first)
    items[:] = taken
    config.hook.pytest_deselected(items=left)


@pytest.hookimpl(wrapper=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    # One worker more than cores, since workers often wait for processes, servers and Ray.
    return (yield) + 1


def pytest_collection_finish() -> None:
    gc.set_threshold(*THRESHOLDS)


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Every trial collects garbage. Exclude modules and fixtures from that.
    now = (item.path, len(sys.modules) // MANY_MODULES)
    if item.config.stash.get(LAST_FREEZE, None) != now:
        gc.collect()
        gc.freeze()
        item.config.stash[LAST_FREEZE] = now


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Gives this session a cache of its own, with the downloads of the user's cache and no prepared data.

    If TENSORBENCH_CACHE names a cache, that cache is used instead.
    """
    if os.environ.get("TENSORBENCH_CACHE"):
        yield
        return
    from tensorbench.machine.cache import cache_dir

    assets = cache_dir() / "assets"
    assets.mkdir(exist_ok=True)
    folder = tmp_path_factory.mktemp("cache")
    (folder / "assets").symlink_to(assets)
    os.environ["TENSORBENCH_CACHE"] = str(folder)
    yield
    del os.environ["TENSORBENCH_CACHE"]


@pytest.fixture(scope="session", autouse=True)
def unsynced_databases() -> None:
    """Keeps SQLite from waiting for the disk, which would take most of the time of small trials.

    A killed process loses nothing, because the system has the written data. Only a power cut would lose it.
    """
    from sqlalchemy import Engine, event

    @event.listens_for(Engine, "connect")
    def unsynced(connection: Any, _: Any) -> None:
        # A file that is no database fails when it is read.
        if isinstance(connection, sqlite3.Connection):
            with suppress(sqlite3.Error):
                connection.execute("PRAGMA synchronous = OFF")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's schema. Its creation takes seconds, so tests copy it."""
    from tensorbench.store.connect import connect

    file = tmp_path_factory.mktemp("store") / "empty.db"
    connect(f"sqlite:///{file}", create=True)
    return file


@pytest.fixture(scope="session")
def new_store(empty_store: Path) -> Callable[[Path], str]:
    """Gives tests a function that creates an empty store in a folder and returns the store's address."""

    def make(folder: Path) -> str:
        shutil.copyfile(empty_store, folder / "mlflow.db")
        return f"sqlite:///{folder / 'mlflow.db'}"

    return make


@pytest.fixture(scope="session")
def call() -> Callable[..., Ended]:
    """Gives tests a function that calls `tensorbench` in this process with command line arguments."""
    import contextlib
    import io

    from tensorbench.cli.program import main

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
