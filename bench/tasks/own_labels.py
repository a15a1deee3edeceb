"""Converts the label columns of described data to labels. Errors about a row say where it is."""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tensorbench.methods.errors import UserError, did_you_mean, shown
from tensorbench.tasks.description import Description
from tensorbench.tasks.table_files import as_answer

#: The largest number of different values in a label column. A column with more is refused as no label.
MOST_CLASSES = 10_000

_FLAGS = {"0": False, "1": True, "false": False, "true": True}

#: The values in the label column of one file or split, and the class names stored with it. If there are class
#: names, the values are class numbers.
Part = tuple[Iterable[Any], Sequence[str] | None]


def read_labels(
    description: Description, parts: Sequence[Part], line: Callable[[int], str]
) -> tuple[tuple[str, ...], Sequence[Any]]:
    """Returns the names of the classes, and the label of each row in the form of `Examples`.

    If the description has several label columns, each value in `parts` is a tuple. `line(row)` returns a
    row's name in messages. Raises UserError for a label that is missing, of the wrong type, or not one of the
    classes, for too few or too many different labels, and if only later parts store class names.
    """
    reader = _ValueReader(description, line)
    values = [value for part, _ in parts for value in part]
    if description.target == "generation":
        return (), [reader.answer(value, row) for row, value in enumerate(values)]
    if description.target == "regression":
        return (), array("d", (reader.target(value, row) for row, value in enumerate(values)))
    # Share one tuple among rows with the same labels, since a large table has millions of rows.
    unique: dict[Any, Any] = {}
    if isinstance(description.label, tuple):
        flags = (reader.flagged(value, row) for row, value in enumerate(values))
        return description.label, [unique.setdefault(flag, flag) for flag in flags]
    keys: list[tuple[str, ...]] = []
    stored_names = list(parts[0][1] or ())
    for part, names in parts:
        if names and not stored_names:
            raise UserError(
                f"{line(len(keys))}: column '{reader.column}' stores class names here, but not in the files "
                "before: store them in all files or in none"
            )
        renumbered = _renumbered(stored_names, names)
        for row, value in enumerate(part, len(keys)):
            key = tuple(_class_key(reader, key, row, renumbered) for key in reader.keys(value, row))
            keys.append(unique.setdefault(key, key))
    distinct = dict.fromkeys(key for row_keys in unique for key in row_keys)
    classes, numbers = _classes(description, reader.column, distinct, stored_names, len(keys))
    for row_keys in unique:
        if unknown := [key for key in row_keys if key not in numbers]:
            raise reader.unknown(unknown[0], keys.index(row_keys), numbers, stored_names)
    labels = {row_keys: tuple(sorted({numbers[key] for key in row_keys})) for row_keys in unique}
    if description.target == "multi-label":
        return classes, [labels[row_keys] for row_keys in keys]
    return classes, [labels[row_keys][0] for row_keys in keys]


def _renumbered(stored_names: list[str], names: Sequence[str] | None) -> dict[str, str] | None:
    """Maps a part's class numbers to those of earlier parts, by class name.

    None if no number changes, because class names are missing or the same. `stored_names` has the class names
    of earlier parts in the order of their numbers. New names are added to this list.
    """
    if names is None or not stored_names or list(names) == stored_names:
        return None
    stored_names += [name for name in names if name not in stored_names]
    return {str(number): str(stored_names.index(name)) for number, name in enumerate(names)}


def _class_key(reader: _ValueReader, key: str, row: int, renumbered: Mapping[str, str] | None) -> str:
    if renumbered is not None and key not in renumbered:
        raise reader.unknown(key, row, renumbered)
    return key if renumbered is None else renumbered[key]


class _ValueReader:
    def __init__(self, description: Description, line: Callable[[int], str]) -> None:
        self._description, self._line = description, line
        self.column = description.label if isinstance(description.label, str) else "label"

    def answer(self, value: Any, row: int) -> str:
        if is_blank(value) or not isinstance(value, (str, int, float)):
            raise self._wrong(value, row, self.column, ", which should hold texts")
        return str(as_answer(value))

    def target(self, value: Any, row: int) -> float:
        try:
            number = math.nan if value is None or isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self._wrong(value, row, self.column, ", which should hold finite numbers")
        return number

    def flagged(self, values: Sequence[Any], row: int) -> tuple[int, ...]:
        """Returns the indices of the label columns that hold 1. Raises UserError unless all hold 0 or 1."""
        numbers = []
        for number, (value, column) in enumerate(zip(values, self._description.label or (), strict=True)):
            flag = None if is_blank(value) else _FLAGS.get(self._key(value, row, column).casefold())
            if flag is None:
                raise self._wrong(value, row, column, ", which should hold 0 or 1")
            numbers += [number] if flag else []
        return tuple(numbers)

    def keys(self, value: Any, row: int) -> list[str]:
        """Returns the labels in a row's value, as texts that identify the classes.

        Multi-label rows may have no label. Raises UserError for a missing label, and for a value that cannot
        be a class, such as 0.5.
        """
        if self._description.target == "single label":
            if is_blank(value):
                raise self._wrong(value, row, self.column)
            return [self._key(value, row, self.column)]
        parts = value.split(self._description.separator) if isinstance(value, str) else value
        parts = [] if parts is None else parts if isinstance(parts, (list, tuple)) else [parts]
        if any(part is None for part in parts):
            raise UserError(f"{self._line(row)}: a label without a value in column '{self.column}'")
        return [key for part in parts if (key := self._key(part, row, self.column))]

    def _key(self, value: Any, row: int, column: str) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
        if isinstance(value, float):
            raise self._wrong(value, row, column, " is not a class; numbers need target: regression")
        if not isinstance(value, (str, int)):
            raise self._wrong(value, row, column, " is no class")
        return str(value).strip()

    def _wrong(self, value: Any, row: int, column: str, reason: str = "") -> UserError:
        what = "no value" if is_blank(value) else shown(value)
        return UserError(f"{self._line(row)}: {what} in column '{column}'{reason}")

    def unknown(
        self, key: str, row: int, accepted: Iterable[str], stored_names: Sequence[str] = ()
    ) -> UserError:
        """Returns the error for a label that is not one of the classes."""
        numbered = key in map(str, range(len(stored_names)))
        name = f" ({shown(stored_names[int(key)])})" if numbered else ""
        near = "" if key.removeprefix("-").isdecimal() else did_you_mean(key, accepted)
        return UserError(
            f"{self._line(row)}: label {shown(key)}{name} is none of the classes {listed(accepted)}"
            + (f"; {near}" if near else "")
        )


def _classes(
    description: Description, column: str, keys: Iterable[str], stored_names: Sequence[str], rows: int
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Returns the names of the classes, and the class number of each value in the column.

    The names come from the description, otherwise from those stored with the data, otherwise from the values.
    """
    keys = list(keys)
    names = description.names or tuple(stored_names)
    if isinstance(description.classes, dict):
        return names, {value: names.index(name) for value, name in description.classes.items()}
    if set(names) & set(stored_names):
        # The description may list the stored names in another order.
        numbers = {name: number for number, name in enumerate(names)}
        return names, {str(n): numbers[name] for n, name in enumerate(stored_names) if name in numbers}
    if names and not set(keys) & set(names) and any(key.isdecimal() for key in keys):
        return names, {str(number): number for number in range(len(names))}
    if not names:
        integers = all(key.removeprefix("-").isdecimal() for key in keys)
        names = tuple(sorted(keys, key=int) if integers else sorted(keys))
        _check_number(description, column, names, rows)
        _check_spellings(column, names)
    return names, {name: number for number, name in enumerate(names)}


def _check_number(description: Description, column: str, values: Sequence[str], rows: int) -> None:
    """Raises UserError if the column has too few or too many different values to be classes."""
    if len(values) < 2:
        only = f"every row has {shown(values[0])}" if values else "no row has any"
        raise UserError(f"column '{column}' has one class only: {only}; there must be at least two")
    in_most_rows = description.target == "single label" and len(values) > max(20, rows // 2)
    if in_most_rows or len(values) > MOST_CLASSES:
        hint = "for numbers give target: regression" if all(map(_is_number, values)) else "is it the label?"
        raise UserError(
            f"column '{column}' has {len(values):,} different values in {rows:,} rows, too many for "
            f"classes: {hint}"
        )


def _check_spellings(column: str, names: Sequence[str]) -> None:
    """Raises UserError if two classes are one: 1 and 1.0, or a text in two Unicode encodings."""
    spelled: dict[str, str] = {}
    for name in names:
        whole = re.fullmatch(r"(-?\d+)\.0+", name)
        other = spelled.setdefault(whole[1] if whole else unicodedata.normalize("NFC", name), name)
        if other != name:
            how = f"{shown(other)} and {shown(name)}" if whole else f"{shown(name)} in two Unicode encodings"
            raise UserError(
                f"column '{column}' has {how}, which would be two classes: write one of them only"
            )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_blank(value: Any) -> bool:
    """Whether a value is None, NaN, an empty text, or a text of spaces only."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def listed(names: Iterable[str], most: int = 12) -> str:
    """Joins names for a message: the first `most`, then "and 5 more" for the rest."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
