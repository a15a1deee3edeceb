"""What the shell may complete an argument to. A press of Tab must be quick: nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

#: What typer asks for a parameter: the words that may stand in the place of what was typed so far.
Complete = Callable[[typer.Context, str], list[str]]

#: Words of a suite or a folder that are offered. zsh evaluates the list that it gets, and any shell puts a
#: word on the command line as it is.
_PLAIN = re.compile(r"[\w .,:@/+=~-]+")

#: The fields of a suite whose rows have a name, and the field of a row that has it.
FIELDS = {"tasks": "task", "methods": "method", "backbones": "name"}


def one_of(*words: str) -> Complete:
    """One of these words."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def suite_files(context: typer.Context, incomplete: str) -> list[str]:
    """Suites, and folders in which some may lie."""
    folder, slash, start = incomplete.rpartition("/")
    try:
        found = sorted(Path(folder + slash).iterdir())
    except OSError:
        return []
    return [
        folder + slash + path.name + "/" * path.is_dir()
        for path in found
        if path.name.startswith(start) and _PLAIN.fullmatch(path.name) and _maybe_suite(path)
    ]


def of_suite(field: str) -> Complete:
    """A name in this field of the suite that the command line has already."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        # What was typed before the last comma stays.
        before, comma, last = incomplete.rpartition(",")
        names = dict.fromkeys(_names(_suite(context), field))
        return [before + comma + name for name in names if name.startswith(last) and _PLAIN.fullmatch(name)]

    return complete


def methods(context: typer.Context, incomplete: str) -> list[str]:
    """A registered method."""
    from methods import METHODS

    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in METHODS if name.startswith(last)]


def _maybe_suite(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return path.is_dir() or (path.suffix in (".yaml", ".yml") and not path.stem.endswith(".lock"))


def _suite(context: typer.Context) -> dict[str, Any]:
    """The fields of the suite's file; none where it cannot be read, which the command itself will say."""
    from bench.suite.yaml_text import parse

    # An option that has no value yet leaves the arguments before it unparsed.
    for given in filter(None, (context.params.get("suite"), *context.args)):
        try:
            values = parse(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(values, dict):
            return values
    return {}


def _names(suite: dict[str, Any], field: str) -> Iterator[str]:
    rows = suite.get(field)
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, dict):
            yield str(row)
        elif field == "budgets":
            # Its kind, which is a name of it without a space.
            yield from (key for key in row if key != "tolerance")
        elif named := [row[key] for key in (FIELDS[field], "name") if key in row]:
            # Data that the suite describes have a name where others have a task.
            yield str(named[0])
