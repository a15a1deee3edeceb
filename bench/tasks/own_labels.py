"""What stands in a label column, as classes and numbers. Every error names the line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bench.tasks.description import Description
from methods.errors import UserError, did_you_mean, shown

#: A label column with more values holds something else.
MOST_CLASSES = 10_000

#: What a column of one of several labels may hold.
_FLAGS = {"0": False, "1": True, "false": False, "true": True}

Line = Callable[[int], str]


def read_labels(
    asked: Description, values: Sequence[Any], known: Sequence[str] | None, line: Line
) -> tuple[tuple[str, ...], list[Any]]:
    """The classes, and of each row the label as `Examples` has it.

    `values`: those of the label column, or a tuple of several columns' a row. `known`: the classes' names
    where the data have them, whose numbers the values are then. Raises UserError.
    """
    column = asked.label if isinstance(asked.label, str) else "label"
    if asked.target == "generation":
        return (), [_answer(column, value, row, line) for row, value in enumerate(values)]
    if asked.target == "regression":
        return (), [_number(column, value, row, line) for row, value in enumerate(values)]
    if isinstance(asked.label, tuple):
        return asked.label, [_flags(asked.label, of_row, row, line) for row, of_row in enumerate(values)]
    if asked.target == "single label":
        for row, value in enumerate(values):
            if value is None:
                raise UserError(f"{line(row)}: no value in column '{column}'")
        parts: list[list[str]] = [[_key(column, value, row, line)] for row, value in enumerate(values)]
    else:
        parts = [_parts(asked, column, value, row, line) for row, value in enumerate(values)]
    classes, number_of = _classes(asked, column, (key for of_row in parts for key in of_row), known)

    def number(key: str, row: int) -> int:
        if key not in number_of:
            near = did_you_mean(key, number_of)
            raise UserError(
                f"{line(row)}: label {shown(key)} is none of the classes {_listed(number_of)}"
                + (f"; {near}" if near else "")
            )
        return number_of[key]

    numbers = [tuple(sorted({number(key, row) for key in of_row})) for row, of_row in enumerate(parts)]
    return classes, numbers if asked.target == "multi-label" else [one for (one,) in numbers]


def _classes(
    asked: Description, column: str, keys: Iterable[str], known: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The classes, and which of them each value of the column means."""
    found = dict.fromkeys(keys)
    names = asked.names or tuple(known or ())
    if isinstance(asked.classes, dict):
        return names, {value: names.index(name) for value, name in asked.classes.items()}
    if names and (known or not found.keys() & set(names)) and all(key.isdecimal() for key in found):
        # The numbers of the classes that are named.
        return names, {str(number): number for number in range(len(names))}
    if not names:
        if len(found) > MOST_CLASSES:
            raise UserError(
                f"column '{column}' has {len(found):,} different values, more than {MOST_CLASSES:,} classes: "
                "for numbers give target: regression"
            )
        whole = all(key.removeprefix("-").isdecimal() for key in found)
        names = tuple(sorted(found, key=int) if whole else sorted(found))
        if len(names) < 2:
            only = f"every row has {shown(names[0])}" if names else "no row has any"
            raise UserError(f"column '{column}' has one class only: {only}; there must be at least two")
    return names, {name: number for number, name in enumerate(names)}


def _key(column: str, value: Any, row: int, line: Line) -> str:
    """A label as a text that is equal for equal labels."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if not value.is_integer():
            raise UserError(
                f"{line(row)}: {value:g} in column '{column}' is no class; numbers need target: regression"
            )
        return str(int(value))
    if not isinstance(value, (str, int)):
        raise UserError(f"{line(row)}: {shown(value)} in column '{column}' is no class")
    return str(value).strip()


def _parts(asked: Description, column: str, value: Any, row: int, line: Line) -> list[str]:
    """The labels of a row: of a list, or of a text with separators. Nothing is no label."""
    some = value.split(asked.separator) if isinstance(value, str) else [] if value is None else value
    if not isinstance(some, (list, tuple)):
        some = [some]
    if any(one is None for one in some):
        raise UserError(f"{line(row)}: a label without a value in column '{column}'")
    return [key for one in some if (key := _key(column, one, row, line))]


def _flags(columns: Sequence[str], values: Sequence[Any], row: int, line: Line) -> tuple[int, ...]:
    found = []
    for number, (column, value) in enumerate(zip(columns, values, strict=True)):
        flag = None if value is None else _FLAGS.get(_key(column, value, row, line).casefold())
        if flag is None:
            told = "no value" if value is None else shown(value)
            raise UserError(f"{line(row)}: {told} in column '{column}', which should hold 0 or 1")
        if flag:
            found.append(number)
    return tuple(found)


def _answer(column: str, value: Any, row: int, line: Line) -> str:
    if not isinstance(value, (str, int, float)):
        told = "no value" if value is None else shown(value)
        raise UserError(f"{line(row)}: {told} in column '{column}', which should hold texts")
    return str(value)


def _number(column: str, value: Any, row: int, line: Line) -> float:
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        told = "no value" if value is None else shown(value)
        raise UserError(f"{line(row)}: {told} in column '{column}', which should hold finite numbers")
    return number


def _listed(names: Iterable[str], most: int = 12) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
