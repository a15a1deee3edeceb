"""Finds a suite's YAML file and reads it, with the lock file beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.plan import PACKAGED
from bench.plan.lock import lock_path, read_lock
from bench.plan.suite import Suite, source_text
from bench.plan.yaml_text import parse, read_text
from methods import UnknownNameError, UserError
from methods.validation import validate


def suite_path(source: Path | str) -> Path:
    """Returns the path of a suite's file. `source` is the path, or the name of a packaged suite.

    A file of the user's comes first. Raises UserError if there is neither.
    """
    path = Path(source)
    if path.is_file() or path.suffix or path.name != str(source):
        return path
    packaged = {file.stem: file for file in PACKAGED.glob("*.yaml")}
    if path.name not in packaged:
        raise UnknownNameError("file or packaged suite", path.name, packaged)
    return packaged[path.name]


def load_suite(source: Path | str | Mapping[str, Any], *, locked: bool = True) -> Suite:
    """Reads and validates a suite. If `locked`, applies the lock file beside it, if there is one.

    `source` is a suite's file, the name of a packaged suite, or a dictionary of a suite's fields, which has
    no lock. A packaged suite's lock is in the working folder. Relative paths in a file start at the file's
    folder, and those in a dictionary at the working folder. Raises UserError with the file, field, value and
    accepted values.
    """
    if isinstance(source, Mapping):
        suite = validate(Suite, dict(source), "suite")
        # Keep the paths as the author wrote them, since `beside` makes them absolute on this machine.
        return suite.beside(Path.cwd()).read_from(suite.source, None)
    path = suite_path(source)
    try:
        text = read_text(path)
        values = parse(text)
    except OSError as error:
        raise UserError(f"cannot read suite {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a suite is a mapping with the fields {', '.join(Suite.model_fields)}")
    suite = validate(Suite, values, str(path)).beside(path.parent)
    file, lock = source_text(path.name, text), lock_path(Path(source))
    if not (locked and lock.exists()):
        return suite.read_from(file, None)
    return read_lock(lock).apply(suite, lock).read_from(file, source_text(lock.name, read_text(lock)))
