"""Runs steps one after another in a separate process, each with a time limit, and writes each result at once.

A step is a function that yields rows. If an error, a crash or its time limit ends a step, the rows so far are
on disk, and the next step runs in a fresh process. Only the standard library is needed.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from . import tables, wheels

#: A row of results: plain values by column. The column `table` names the table to which the row belongs.
Row = dict[str, Any]

RESULTS, PAGE = "results.jsonl", "results.md"

#: The number of traceback lines that are kept.
KEPT_LINES = 12


@dataclass(frozen=True)
class Step:
    """A check or measurement with a time limit of `seconds`.

    `run` is "module:function". The function is called with `options` and yields rows.
    """

    name: str
    run: str
    seconds: float
    options: Mapping[str, Any] = field(default_factory=dict)


class Results:
    """The file of results, one JSON object per line, and the page made from them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file, self._page = folder / RESULTS, folder / PAGE
        self._file.write_text("", encoding="utf-8")
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Writes a row and returns once it is on disk and on the page."""
        self._rows.append(row)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._page.write_text(tables.page(self._rows), encoding="utf-8")


def read(folder: Path) -> list[Row]:
    """The rows of a run, without a last line that was cut off."""
    lines = (folder / RESULTS).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


class Runner:
    """Runs steps within a total time of `seconds`.

    `start` is the start method of multiprocessing. It is "spawn" by default, since CUDA does not support
    forks.
    """

    def __init__(
        self,
        folder: Path,
        seconds: float,
        *,
        start: str = "spawn",
        tell: Callable[[str], None] = print,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.results = Results(folder)
        self._clock = clock
        self._end = clock() + seconds
        self._context: Any = multiprocessing.get_context(start)
        self._worker: tuple[Any, Connection] | None = None
        self._tell = tell

    def run(self, steps: Sequence[Step]) -> bool:
        """Runs the steps and returns whether all of them ran to their end."""
        try:
            ended = [self._step(step) for step in steps]
            return all(ended)
        finally:
            self._drop()

    def _step(self, step: Step) -> bool:
        began = self._clock()
        limit = min(step.seconds, self._end - began)
        status, message = ("not run", "no time was left") if limit <= 0 else self._watch(step, began + limit)
        row = {
            "table": tables.STEPS,
            "step": step.name,
            "status": status,
            "seconds": round(self._clock() - began, 1),
            "bound": step.seconds,
            "message": message,
        }
        self.results.add(row)
        self._tell(f"{step.name}: {status} after {row['seconds']} s {message}".rstrip())
        return status == "done"

    def _watch(self, step: Step, end: float) -> tuple[str, str]:
        """Reads the rows of a step until it or its time ends. Returns how it ended, with a message."""
        process, link = self._at_work(step)
        while self._clock() < end and link.poll(max(0.0, end - self._clock())):
            try:
                kind, what = link.recv()
            except (EOFError, OSError):
                process.join()
                self._drop()
                return "died", f"its process {_death(process.exitcode)}"
            if kind == "row":
                self.results.add({"step": step.name, **what})
                continue
            if kind == "failed":
                # A GPU error may have spoilt the process's state.
                self._drop()
                return "failed", what
            return "done", ""
        self._drop()
        return "over time", f"ended after {step.seconds:g} s, or with the time of the whole run"

    def _at_work(self, step: Step) -> tuple[Any, Connection]:
        """Sends the step to the current process, or to a new one if there is none or it has died."""
        request = (step.run, dict(step.options))
        if self._worker is not None:
            try:
                self._worker[1].send(request)
                return self._worker
            except OSError:
                self._drop()
        self._worker = self._started()
        self._worker[1].send(request)
        return self._worker

    def _started(self) -> tuple[Any, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=serve, args=(theirs,))
        process.start()
        theirs.close()
        return process, ours

    def _drop(self) -> None:
        """Kills the process, if there is one."""
        if self._worker is None:
            return
        process, link = self._worker
        self._worker = None
        link.close()
        process.kill()
        process.join()


def _death(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def serve(link: Connection) -> None:
    """The main loop of the separate process: runs the steps that arrive through `link`."""
    wheels.refuse()
    while True:
        try:
            run, options = link.recv()
        except (EOFError, OSError):
            return
        module, _, name = run.partition(":")
        try:
            for row in getattr(importlib.import_module(module), name)(**options):
                link.send(("row", row))
            link.send(("done", None))
        except BaseException as error:  # An error of one step must not stop the others.
            lines = traceback.format_exc().strip().splitlines()[-KEPT_LINES:]
            link.send(("failed", f"{type(error).__name__}: {error}\n" + "\n".join(lines)))
