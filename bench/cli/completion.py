"""Completes arguments when a user presses the tab key in a shell.

Completion must be quick, so this module does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import typer

from tensorbench.plan import PACKAGED

#: A function that completes a word, in the form that typer calls.
Complete = Callable[[typer.Context, str], list[str]]

SUITE_ENDINGS = (".yaml", ".yml")

#: Matches file names that are safe to offer. Shells insert completions without quotes, zsh evaluates them.
_PLAIN = re.compile(r"[\w .,:@/+=~-]+")


def one_of(*words: str) -> Complete:
    """Makes a function that offers the words that begin with the typed text."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def suite_files(context: typer.Context, incomplete: str) -> list[str]:
    """Offers the suite files and folders whose paths begin with the typed text, and packaged suites."""
    folder, slash, start = incomplete.rpartition("/")
    try:
        paths = sorted(Path(folder + slash).iterdir())
    except OSError:
        return []
    packaged = sorted(path.stem for path in PACKAGED.glob("*.yaml") if path.stem.startswith(incomplete))
    return packaged + [
        folder + slash + path.name + "/" * path.is_dir()
        for path in paths
        if path.name.startswith(start) and _PLAIN.fullmatch(path.name) and _maybe_suite(path)
    ]


def methods(context: typer.Context, incomplete: str) -> list[str]:
    """Completes the last name in a list of methods. For example `lora,lort` becomes `lora,lorta`.

    Returns one completed list for each method that matches.
    """
    from tensorbench.methods import METHODS

    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in METHODS if name.startswith(last)]


def _maybe_suite(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return path.is_dir() or (path.suffix in SUITE_ENDINGS and not path.stem.endswith(".lock"))
