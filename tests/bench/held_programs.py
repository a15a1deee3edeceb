"""Starts the command line as a process that is held while one of its trials runs (`holding.py`)."""

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
    """Starts the command line, held by files in `folder` once it has let `through` trials through."""
    release(folder)
    return Program(Path(holding.__file__), (through, folder, *arguments), cwd, log)


@contextmanager
def started(folder: Path, *arguments: Any, through: int) -> Iterator[Program]:
    """The command line running in its folder, killed on exit."""
    process = begin(folder, folder, folder / f"program-{next(_numbers)}.log", arguments, through)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def await_held(process: Program, folder: Path) -> str:
    """Waits until a trial is held and returns its worker's name.

    Raises AssertionError with the program's output if it ends first.
    """
    while not (folder / "held").exists():
        assert process.poll() is None, process.output()
        time.sleep(holding.LOOK)
    return (folder / "held").read_text()


def release(folder: Path) -> None:
    """Releases the held trial; the next one is held again."""
    (folder / "held").unlink(missing_ok=True)


def let_all_through(folder: Path) -> None:
    """Releases the held trial and all later ones in every process that uses this folder."""
    (folder / "go").touch()
