"""Python programs as processes that need not import anything: forks of one that has imported it all.

Importing torch, transformers, peft and MLflow takes a new interpreter ten times as long as a toy suite.
"""

from __future__ import annotations

import atexit
import os
import runpy
import signal
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

#: What the command line imports on the way to a trial, a search and a stored record.
IMPORTED = (
    "bench.cli.program",
    "bench.run",
    "bench.cli.progress",
    "bench.execution.local",
    "bench.search.study",
    "bench.search.tuning",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.db.utils",
    "optuna.storages._rdb.storage",
    "peft",
    "transformers.models.vit.modeling_vit",
    "sklearn.metrics",
    "sqlalchemy.dialects.sqlite",
    "baselines.peft_adapter",
    "tests.bench.preloaded",
)

#: Starts processes that have imported what the command line imports.
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(list(IMPORTED))


class Program:
    """A Python file run as a program, in a session of its own; what it prints is added to `log`."""

    def __init__(self, file: Path, arguments: tuple[Any, ...], folder: Path, log: Path, **environment: str):
        self.args, self._log = [str(file), *map(str, arguments)], log
        self._process = FORKS.Process(
            target=_run, args=(self.args, folder, log, {**os.environ, **environment})
        )
        self._process.start()

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        """Its exit code, negative for the signal that ended it; None as long as it runs."""
        return self._process.exitcode

    def wait(self) -> int:
        self._process.join()
        code = self.poll()
        assert code is not None
        return code

    def output(self) -> str:
        """Waits for its end; everything that was printed."""
        self.wait()
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


def _run(arguments: list[str], folder: Path, log: Path, environment: dict[str, str]) -> None:
    os.setsid()
    # Who starts workers blocks signals meanwhile, and the server of forks may have begun just then.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    with log.open("ab") as out:
        os.dup2(out.fileno(), sys.stdout.fileno())
        os.dup2(out.fileno(), sys.stderr.fileno())
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        # A process of multiprocessing would leave them out.
        atexit._run_exitfuncs()
