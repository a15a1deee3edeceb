"""What all tests share: one cache, one empty MLflow store to copy, the program called in this process."""

from __future__ import annotations

import os

# Tiny models are fastest on one thread, and subprocesses inherit it. Before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Workers with more have threads that wait for one another. Where tests keep all cores busy, one that waits by
# spinning takes the core that the other one needs: a step of milliseconds takes seconds.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# What whoever runs the tests has set for programs of theirs: colours in what tests read, a store, a cluster.
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

#: How often Python looks for garbage by itself.
THRESHOLDS = gc.get_threshold()
# Importing and collecting tests makes many objects and hardly any garbage. To look for it as often takes
# a sixth of that time.
gc.set_threshold(100_000, 20, 20)

#: So many more modules are imported by what a test needs first: a model's architecture, a database.
MANY_MODULES = 50

SUITES = Path(__file__).parent.parent / "suites"


#: The file of tests, and roughly how many modules there were, when the garbage collector was last told to
#: look at nothing that exists any more.
frozen = pytest.StashKey[tuple[Path, int]]()


@pytest.hookimpl(wrapper=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """One worker more than cores: two workers leave two cores idle for a third of the time, while tests wait
    for processes, servers and Ray.
    """
    return (yield) + 1


def pytest_collection_finish() -> None:
    gc.set_threshold(*THRESHOLDS)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Modules, and what earlier files of tests keep, are no garbage: a collection, and every trial makes one,
    takes long to find that out again.
    """
    now = (item.path, len(sys.modules) // MANY_MODULES)
    if item.config.stash.get(frozen, None) != now:
        gc.collect()
        gc.freeze()
        item.config.stash[frozen] = now


class Ended(NamedTuple):
    """How a call of the program ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Downloads from the user's cache, so that they happen once; what is prepared from them, anew."""
    if os.environ.get("TENSORBENCH_CACHE"):
        yield
        return
    from bench.sources.assets import cache_dir

    assets = cache_dir() / "assets"
    assets.mkdir(exist_ok=True)
    folder = tmp_path_factory.mktemp("cache")
    (folder / "assets").symlink_to(assets)
    os.environ["TENSORBENCH_CACHE"] = str(folder)
    yield
    del os.environ["TENSORBENCH_CACHE"]


@pytest.fixture(scope="session", autouse=True)
def unsynced_databases() -> None:
    """SQLite files that need not outlast a power cut: most of a small trial's time is waiting for the disk.

    A killed process loses nothing by it: what was written is the system's by then.
    """
    from sqlalchemy import Engine, event

    @event.listens_for(Engine, "connect")
    def unsynced(connection: Any, _: Any) -> None:
        # What is no database says so itself when it is read.
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

    from bench import cli

    def program(*arguments: object) -> Ended:
        out, err = io.StringIO(), io.StringIO()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        show = warnings.showwarning
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["tensorbench", *map(str, arguments)])
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    cli.main()
                    code = 0
                except SystemExit as end:
                    code = int(end.code or 0)
                finally:
                    for number, handler in handlers.items():
                        signal.signal(number, handler)
                    warnings.showwarning = show
        return Ended(code, out.getvalue(), err.getvalue())

    return program
