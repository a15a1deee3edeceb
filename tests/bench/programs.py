"""Runs Python programs as forks of a process that has imported the slow libraries.

A new interpreter would have to import torch, transformers, peft and MLflow, which takes ten times as long as
a toy suite.
"""

from __future__ import annotations

import atexit
import os
import runpy
import signal
import sys
from contextlib import chdir
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

#: The modules that the command line imports for a trial, a search or a stored record.
IMPORTED = (
    "tensorbench.cli.program",
    "tensorbench.run.suites",
    "tensorbench.cli.progress",
    "tensorbench.execution.local",
    "tensorbench.run.search.ranks",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.db.utils",
    "optuna.storages._rdb.storage",
    "peft",
    "transformers.models.vit.modeling_vit",
    "sklearn.metrics",
    "sqlalchemy.dialects.sqlite",
    "tensorbench.baselines.peft_adapter",
    "tests.bench.preloaded",
)

#: Starts processes that are forks of a process with these imports.
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(list(IMPORTED))


class Program:
    """A process that runs a Python file as a program, in the folder `folder`.

    The process has a session of its own. Its output is appended to the file `log`.
    """

    def __init__(self, file: Path, arguments: tuple[Any, ...], folder: Path, log: Path, **environment: str):
        self.args, self._log = [str(file), *map(str, arguments)], log
        self._process = FORKS.Process(
            target=_run, args=(self.args, folder, log, {**os.environ, **environment})
        )
        # Python 3.11 gives the fork server no path, so it finds `tests` only if it starts in the checkout.
        with chdir(ROOT):
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
        """The program's exit code, negative for a signal. None while it runs."""
        return self._process.exitcode

    def wait(self) -> int:
        self._process.join()
        code = self.poll()
        assert code is not None
        return code

    def output(self) -> str:
        """Waits until the program ends and returns everything in its log."""
        self.wait()
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


def _run(arguments: list[str], folder: Path, log: Path, environment: dict[str, str]) -> None:
    os.setsid()
    # Starting workers blocks signals, and the fork server may have been started at that moment.
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
        # multiprocessing's own processes would skip the exit handlers.
        atexit._run_exitfuncs()
