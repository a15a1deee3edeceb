"""Converts the label columns of tables to labels. Errors about a row say where it is."""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any

from tensorbench.methods.errors import UserError, did_you_mean, first_few, shown
from tensorbench.tasks.description import Description
from tensorbench.tasks.tables import LABEL, Table, as_answer

#: The largest number of different values in a label column. A column with more is refused as no label.
MOST_CLASSES = 10_000

#: What messages add where the classes are numbers.
AMOUNTS = "numbers: write `target: regression` if they are amounts"

_FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1}


def read_labels(
    data: Description, tables: Sequence[Table], line: Callable[[int], str]
) -> tuple[tuple[str, ...], Sequence[Any]]:
    """Returns the names of the classes, and the label of each row in the form of `Examples`.

    `line(row)` returns a row's name in messages. Rows are numbered through all tables. Raises UserError for a
    label that is missing, of the wrong type, or not one of the classes, for too few or too many different
    labels, and if only later tables store class names.
    """

    def converted(name: str, values: Iterable[Any], convert: Callable[[Any], Any], first: int = 0) -> Any:
        for row, value in enumerate(values, first):
            try:
                yield convert(value)
            except ValueError as error:
                what = "no value" if is_blank(value) else shown(value)
                raise UserError(f"{line(row)}: {what} in column '{name}'{error}") from error

    def column(name: str, convert: Callable[[Any], Any]) -> Any:
        return converted(name, (v for table in tables for v in table.columns[name].to_pylist()), convert)

    name = data.label if isinstance(data.label, str) else LABEL
    if data.target == "generation":
        return (), list(column(name, _answer))
    if data.target == "regression":
        return (), array("d", column(name, _number))
    # Rows with the same labels share a tuple, since a large table has millions of rows.
    unique: dict[tuple[Any, ...], Any] = {}
    if isinstance(data.label, tuple):
        flags = zip(*(column(name, _flag) for name in data.label), strict=True)
        chosen = (tuple(n for n, flag in enumerate(row) if flag) for row in flags)
        return data.label, [unique.setdefault(row, row) for row in chosen]
    separator = None if data.target == "single label" else data.separator
    keys: list[tuple[str, ...]] = []
    stored_names = list(tables[0].class_names.get(name, ()))
    for table in tables:
        if (names := table.class_names.get(name)) and not stored_names:
            raise UserError(
                f"{line(len(keys))}: column '{name}' stores class names here, but not in the files "
                "before: store them in all files or in none"
            )
        renumbered = _renumbered(stored_names, names)
        of_table = converted(name, table.columns[name].to_pylist(), partial(_keys, separator), len(keys))
        for row, key in enumerate(of_table, len(keys)):
            if renumbered is not None:
                if unknown := [part for part in key if part not in renumbered]:
                    raise _unknown(line(row), unknown[0], renumbered)
                key = tuple(renumbered[part] for part in key)
            keys.append(unique.setdefault(key, key))
    distinct = dict.fromkeys(part for key in unique for part in key)
    classes, numbers = _classes(data, name, list(distinct), stored_names, len(keys))
    for key in unique:
        if unknown := [part for part in key if part not in numbers]:
            raise _unknown(line(keys.index(key)), unknown[0], numbers, stored_names)
    labels = {key: tuple(sorted({numbers[part] for part in key})) for key in unique}
    if data.target == "multi-label":
        return classes, [labels[key] for key in keys]
    return classes, [labels[key][0] for key in keys]


def _renumbered(stored_names: list[str], names: Sequence[str] | None) -> dict[str, str] | None:
    """Maps a table's class numbers to those of earlier tables, by class name.

    Returns None if no number changes, because class names are missing or the same. `stored_names` has the
    class names of earlier tables in the order of their numbers. New names are added to this list.
    """
    if names is None or not stored_names or list(names) == stored_names:
        return None
    stored_names += [name for name in names if name not in stored_names]
    return {str(number): str(stored_names.index(name)) for number, name in enumerate(names)}


# --- values, converted or refused by a ValueError with the end of a message ---


def _answer(value: Any) -> str:
    if is_blank(value) or not isinstance(value, (str, int, float)):
        raise ValueError(", which should hold texts")
    return str(as_answer(value))


def _number(value: Any) -> float:
    # Python reads 3_560 as a number.
    strange = value is None or isinstance(value, bool) or (isinstance(value, str) and "_" in value)
    try:
        number = math.nan if strange else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(", which should hold finite numbers")
    return number


def _flag(value: Any) -> int:
    flag = None if is_blank(value) else _FLAGS.get(_key(value).casefold())
    if flag is None:
        raise ValueError(", which should hold 0 or 1")
    return flag


def _keys(separator: str | None, value: Any) -> tuple[str, ...]:
    """Returns the labels in a row's value, as texts that identify the classes.

    Without a separator, the whole value is the only label.
    """
    if separator is None:
        if is_blank(value):
            raise ValueError
        return (_key(value),)
    parts = value.split(separator) if isinstance(value, str) else value
    parts = [] if parts is None else parts if isinstance(parts, (list, tuple)) else [parts]
    if any(part is None for part in parts):
        raise ValueError(" has a label without a value")
    return tuple(key for part in parts if (key := _key(part)))


def _key(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, float):
        raise ValueError(" is not a class; numbers need target: regression")
    if not isinstance(value, (str, int)):
        raise ValueError(" is no class")
    return str(value).strip()


# --- classes ---


def _unknown(line: str, key: str, accepted: Iterable[str], stored_names: Sequence[str] = ()) -> UserError:
    """Returns the error for a label that is not one of the classes."""
    numbered = key in map(str, range(len(stored_names)))
    name = f" ({shown(stored_names[int(key)])})" if numbered else ""
    near = "" if key.removeprefix("-").isdecimal() else did_you_mean(key, accepted)
    listed = first_few(list(accepted), 12)
    return UserError(
        f"{line}: label {shown(key)}{name} is none of the classes {listed}{f'; {near}' if near else ''}"
    )


def _classes(
    data: Description, column: str, keys: Sequence[str], stored_names: Sequence[str], rows: int
) -> tuple[tuple[str, ...], Mapping[str, int]]:
    """Returns the names of the classes, and the class number of each value in the column.

    The names come from the description, otherwise from those stored with the data, otherwise from the values.
    A description that lists the stored names in their order may give one of them another name.
    """
    names = data.names or tuple(stored_names)
    if isinstance(data.classes, dict):
        for number, stored in enumerate(stored_names):
            if stored in names and data.classes.get(str(number), stored) != stored:
                raise _other_order(column, names, stored_names)
        return names, {value: names.index(name) for value, name in data.classes.items()}
    if {*names} & {*stored_names}:
        numbers = {name: number for number, name in enumerate(names)}
        if _renamed(names, stored_names):
            stored_names = names
        elif not {*names} <= {*stored_names} and not {*stored_names} <= {*names}:
            raise _other_order(column, names, stored_names)
        return names, {str(n): numbers[name] for n, name in enumerate(stored_names) if name in numbers}
    folded, stored_folded = ([name.casefold() for name in each] for each in (names, stored_names))
    if any(name in stored_folded[:place] + stored_folded[place + 1 :] for place, name in enumerate(folded)):
        raise _other_order(column, names, stored_names)
    if names and not set(keys) & set(names) and any(key.isdecimal() for key in keys):
        return names, {str(number): number for number in range(len(names))}
    if not names:
        integers = all(key.removeprefix("-").isdecimal() for key in keys)
        names = tuple(sorted(keys, key=Decimal) if integers else sorted(keys))
        _check_number(data, column, names, rows)
        _check_spellings(column, names)
    return names, {name: number for number, name in enumerate(names)}


def _renamed(names: Sequence[str], stored_names: Sequence[str]) -> bool:
    """Whether a description lists the stored names in their order, with at most one of them renamed.

    If two names differ from the stored ones, their order could only be guessed.
    """
    other = [pair for pair in zip(names, stored_names, strict=False) if pair[0] != pair[1]]
    return len(names) == len(stored_names) and (
        not other or (len(other) == 1 and other[0][0] not in stored_names and other[0][1] not in names)
    )


def _other_order(column: str, names: Sequence[str], stored_names: Sequence[str]) -> UserError:
    """Returns the error for class names whose order contradicts the names stored with the data."""
    return UserError(
        f"classes: {', '.join(names)}, but the data name the numbers of column '{column}' "
        f"{', '.join(stored_names)}: give the classes these names, or none"
    )


def _check_number(data: Description, column: str, values: Sequence[str], rows: int) -> None:
    """Raises UserError if the column has too few or too many different values to be classes."""
    if len(values) < 2:
        only = f"every row has {shown(values[0])}" if values else "no row has any"
        raise UserError(f"column '{column}' has one class only: {only}; there must be at least two")
    in_most_rows = data.target == "single label" and len(values) > max(20, rows // 2)
    if in_most_rows or len(values) > MOST_CLASSES:
        hint = "for numbers give target: regression" if all(map(is_number, values)) else "is it the label?"
        raise UserError(
            f"column '{column}' has {len(values):,} different values in {rows:,} rows, too many for "
            f"classes: {hint}"
        )


def _check_spellings(column: str, names: Sequence[str]) -> None:
    """Raises UserError if two names seem to mean the same class.

    Examples are 1 and 1.0, Yes and yes, or one text in two Unicode encodings.
    """
    spelled: dict[str, str] = {}
    for name in names:
        whole = re.fullmatch(r"(-?\d+)\.0+", name)
        text = whole[1] if whole else unicodedata.normalize("NFC", name)
        other = spelled.setdefault(text.casefold(), name)
        if other != name:
            same = not whole and unicodedata.normalize("NFC", other) == text
            how = f"{shown(name)} in two Unicode encodings" if same else f"{shown(other)} and {shown(name)}"
            raise UserError(
                f"column '{column}' has {how}, which would be two classes: write one of them only, or give "
                "each value its class in `classes`"
            )


def is_number(text: str) -> bool:
    """Whether Python reads a text as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_blank(value: Any) -> bool:
    """Whether a value is None, NaN, an empty text, or a text of spaces only."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())
