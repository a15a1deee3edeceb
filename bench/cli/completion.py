"""Completion of arguments by the shell. It has to be quick: nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import typer

#: Completes a word, as typer calls it for a parameter.
Complete = Callable[[typer.Context, str], list[str]]

#: Safe names of files: zsh evaluates the list that it gets, and any shell puts a word on the line as it is.
_PLAIN = re.compile(r"[\w .,:@/+=~-]+")


def one_of(*words: str) -> Complete:
    """One of these words."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def suite_files(context: typer.Context, incomplete: str) -> list[str]:
    """Suites and folders."""
    folder, slash, start = incomplete.rpartition("/")
    try:
        paths = sorted(Path(folder + slash).iterdir())
    except OSError:
        return []
    return [
        folder + slash + path.name + "/" * path.is_dir()
        for path in paths
        if path.name.startswith(start) and _PLAIN.fullmatch(path.name) and _maybe_suite(path)
    ]


def methods(context: typer.Context, incomplete: str) -> list[str]:
    """A registered method."""
    from methods import METHODS

    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in METHODS if name.startswith(last)]


def _maybe_suite(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return path.is_dir() or (path.suffix in (".yaml", ".yml") and not path.stem.endswith(".lock"))
