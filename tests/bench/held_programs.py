"""Starts the command line in a process that stops and waits while one of its trials runs.

The process runs `holding.py`. Such a trial and its process are called held.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import holding
from .programs import Program

_numbers = itertools.count()


def begin(folder: Path, cwd: Path, log: Path, arguments: tuple[Any, ...], through: int = 0) -> Program:
    """Starts the command line with `arguments`. It runs `through` trials and is held at the next.

    `folder` has the files by which the process is held and released.
    """
    release(folder)
    return Program(Path(holding.__file__), (through, folder, *arguments), cwd, log)


@contextmanager
def started(folder: Path, *arguments: Any, through: int) -> Iterator[Program]:
    """Context in which the command line runs in `folder`. It is killed at the end."""
    process = begin(folder, folder, folder / f"program-{next(_numbers)}.log", arguments, through)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def await_held(process: Program, folder: Path) -> str:
    """Waits until a trial is held and returns the name of its worker.

    If the process ends before that, raises AssertionError with the output of the process.
    """
    while not (folder / "held").exists():
        assert process.poll() is None, process.output()
        time.sleep(holding.LOOK)
    return (folder / "held").read_text()


def release(folder: Path) -> None:
    """Lets the held trial go on. The next trial is held again."""
    (folder / "held").unlink(missing_ok=True)


def let_all_through(folder: Path) -> None:
    """Lets all trials run, of every process that is held by files in this folder."""
    (folder / "go").touch()
