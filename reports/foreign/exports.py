"""Exports of MLflow and W&B: their lines as those of a table of runs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from tensorbench.methods import UserError
from tensorbench.methods.errors import shown

#: The prefixes of columns in exports of MLflow (`mlflow experiments csv`, `mlflow.search_runs`). If a name
#: occurs with several, the first counts.
PREFIXES = ("metrics.", "params.", "tags.")
#: Columns of MLflow, and of W&B's page, that tell nothing of what ran.
MLFLOW = {"run_id", "experiment_id", "artifact_uri", "start_time", "end_time", "status"}
WANDB = {"Name", "State", "Notes", "User", "Tags", "Created", "Updated", "Runtime", "End Time", "ID", "Sweep"}
#: The columns of an export by W&B's programming interface, as its guide writes it. Two hold dictionaries.
BY_API = {"summary", "config", "name"}
#: The states of runs that have ended well, in lower case.
ENDED = {"finished"}


#: A line of a table, with its place: the file and the line.
Line = tuple[str, Mapping[str, Any]]


def unfolded(lines: Sequence[Line]) -> tuple[list[Line], list[bool]]:
    """The lines of an export with the columns of a table of runs, and whether each run ended well.

    Lines of other tables stay as they are. Raises UserError for a dictionary that cannot be read.
    """
    columns = {key for _, line in lines for key in line}
    own: list[Line] = list(lines)
    ended = [True] * len(lines)
    if any(column.startswith(PREFIXES[:2]) for column in columns):
        own = [(where, _of_mlflow(line)) for where, line in lines]
        ended = [_ended(line, "status") for _, line in lines]
    elif {"Name", "State"} <= columns and columns & (WANDB - {"Name", "State"}):
        own = [(where, {k: v for k, v in line.items() if k not in WANDB}) for where, line in lines]
        ended = [_ended(line, "State") for _, line in lines]
    elif columns - {"", "Unnamed: 0"} == BY_API:
        parts = [[_flat(_parsed(where, line[key])) for key in ("config", "summary")] for where, line in lines]
        own = [(where, dict(chain(*each))) for (where, _), each in zip(lines, parts, strict=True)]
    return own, ended


def _of_mlflow(line: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in line.items() if key not in MLFLOW and not key.startswith(PREFIXES)}
    for prefix in reversed(PREFIXES):
        values |= {
            key.removeprefix(prefix): value
            for key, value in line.items()
            if key.startswith(prefix) and not key.startswith("tags.mlflow.")
        }
    return values


def _ended(line: Mapping[str, Any], column: str) -> bool:
    return str(line.get(column, "finished")).strip().casefold() in ENDED


def _parsed(where: str, value: Any) -> Mapping[str, Any]:
    """A dictionary that a table holds as Python's text. NaN and infinite numbers become None."""
    if isinstance(value, Mapping):
        return value
    text = re.sub(r"(?<=: )-?(nan|inf)\b", "None", str(value))
    try:
        parsed = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        parsed = None
    if not isinstance(parsed, dict):
        raise UserError(f"{where}: {shown(value)} is no dictionary, as W&B's summary and config are")
    return parsed


def _flat(values: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the values of nested dictionaries, with names as W&B shows them: `optimizer.lr`."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        elif not str(key).startswith("_"):
            yield f"{before}{key}", value
