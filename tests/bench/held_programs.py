"""The command line as a process of its own, which is held while one of its trials runs (`holding.py`)."""

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
    """Starts the command line, which is held by files in `folder`."""
    release(folder)
    return Program(Path(holding.__file__), (through, folder, *arguments), cwd, log)


@contextmanager
def started(folder: Path, *arguments: Any, through: int) -> Iterator[Program]:
    """The command line in its folder, killed at the end."""
    process = begin(folder, folder, folder / f"program-{next(_numbers)}.log", arguments, through)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def await_held(process: Program, folder: Path) -> str:
    """Waits until a trial is held, and returns the name of its worker.

    Raises AssertionError, with what it printed, where the program ends before that.
    """
    while not (folder / "held").exists():
        assert process.poll() is None, process.output()
        time.sleep(holding.LOOK)
    return (folder / "held").read_text()


def release(folder: Path) -> None:
    """Lets the held trial go on; the next one is held again."""
    (folder / "held").unlink(missing_ok=True)


def let_all_through(folder: Path) -> None:
    """Lets the held trial and all later ones go on, in every process on this folder."""
    (folder / "go").touch()
