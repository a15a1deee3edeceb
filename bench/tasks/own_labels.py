"""What stands in a label column, as classes and numbers. Every error names the line."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.tasks.description import Description
from bench.tasks.tables import as_answer
from methods.errors import UserError, did_you_mean, shown

#: A label column with more values holds something else.
MOST_CLASSES = 10_000

#: What a column of one of several labels may hold.
_FLAGS = {"0": False, "1": True, "false": False, "true": True}

Line = Callable[[int], str]


def read_labels(
    asked: Description, values: Iterable[Any], line: Line
) -> tuple[tuple[str, ...], Sequence[Any]]:
    """The classes, and of each row the label as `Examples` has it. Raises UserError."""
    labels = Labels(asked, None, line)
    labels.add(values)
    return labels.finish()


class Labels:
    """A column of labels that is read in parts. `known`: the classes' names where the first part has them.

    The values are then their numbers. With several columns of labels they are a tuple a row.
    What is equal in many rows is kept once, so that a row takes a few bytes, whatever its label is called.
    """

    def __init__(self, asked: Description, known: Sequence[str] | None, line: Line) -> None:
        self._asked, self._known, self._line = asked, list(known or ()), line
        #: Of a part whose classes have other numbers than `known` gives them: those that they have there.
        self._here: dict[str, str] | None = None
        self._column = asked.label if isinstance(asked.label, str) else "label"
        #: The labels that were found, with numbers in their order, and the numbers of each row.
        self._keys: dict[str, int] = {}
        self._distinct: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._rows: Any = array("d") if asked.target == "regression" else []

    def add(self, values: Iterable[Any], named: Sequence[str] | None = None) -> None:
        """The next rows. Raises UserError for what is no label.

        `named`: the classes' names where this part of the data has them. A class is known by its name,
        whatever number it has here.
        """
        self._here = None
        if named is not None and self._known and list(named) != self._known:
            self._known += [name for name in named if name not in self._known]
            self._here = {str(number): str(self._known.index(name)) for number, name in enumerate(named)}
        for row, value in enumerate(values, len(self._rows)):
            self._rows.append(self._read(value, row))

    def _read(self, value: Any, row: int) -> Any:
        asked, column = self._asked, self._column
        if asked.target == "generation":
            return self._answer(value, row)
        if asked.target == "regression":
            return self._target(value, row)
        if isinstance(asked.label, tuple):
            flags = [self._flag(one, row, name) for one, name in zip(value, asked.label, strict=True)]
            numbers = tuple(number for number, flag in enumerate(flags) if flag)
        elif asked.target == "single label":
            if is_blank(value):
                raise self._wrong(value, row, column)
            numbers = (self._number(self._key(value, row, column), row),)
        else:
            numbers = tuple(self._number(part, row) for part in self._parts(value, row))
        return self._distinct.setdefault(numbers, numbers)

    def _wrong(self, value: Any, row: int, column: str, should: str = "") -> UserError:
        """That a value is missing or is nothing that its column `should` hold."""
        told = "no value" if is_blank(value) else shown(value)
        return UserError(f"{self._line(row)}: {told} in column '{column}'{should}")

    def _key(self, value: Any, row: int, column: str) -> str:
        """A label as a text that is equal for equal labels."""
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
        if isinstance(value, float):
            raise self._wrong(value, row, column, " is no class; numbers need target: regression")
        if not isinstance(value, (str, int)):
            raise self._wrong(value, row, column, " is no class")
        return str(value).strip()

    def _parts(self, value: Any, row: int) -> list[str]:
        """The labels of a row: of a list, or of a text with separators. Nothing is no label."""
        some = (
            value.split(self._asked.separator) if isinstance(value, str) else [] if value is None else value
        )
        if not isinstance(some, (list, tuple)):
            some = [some]
        if any(one is None for one in some):
            raise UserError(f"{self._line(row)}: a label without a value in column '{self._column}'")
        return [key for one in some if (key := self._key(one, row, self._column))]

    def _flag(self, value: Any, row: int, column: str) -> bool:
        flag = None if is_blank(value) else _FLAGS.get(self._key(value, row, column).casefold())
        if flag is None:
            raise self._wrong(value, row, column, ", which should hold 0 or 1")
        return flag

    def _answer(self, value: Any, row: int) -> str:
        if is_blank(value) or not isinstance(value, (str, int, float)):
            raise self._wrong(value, row, self._column, ", which should hold texts")
        return str(as_answer(value))

    def _target(self, value: Any, row: int) -> float:
        try:
            number = math.nan if value is None or isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self._wrong(value, row, self._column, ", which should hold finite numbers")
        return number

    def _number(self, key: str, row: int) -> int:
        if self._here is not None:
            if key not in self._here:
                raise self._unknown(key, row, self._here)
            key = self._here[key]
        number = self._keys.setdefault(key, len(self._keys))
        if number == MOST_CLASSES and not (self._asked.names or self._known):
            raise UserError(
                f"column '{self._column}' has more than {MOST_CLASSES:,} different values, too many classes: "
                "for numbers give target: regression"
            )
        return number

    def finish(self) -> tuple[tuple[str, ...], Sequence[Any]]:
        """The classes and the labels of all rows. Raises UserError for a label that is none of them."""
        if self._asked.target in ("generation", "regression"):
            return (), self._rows
        if isinstance(self._asked.label, tuple):
            return self._asked.label, self._rows
        self._here = None
        classes, number_of = _classes(self._asked, self._column, self._keys, self._known)
        if unknown := {number: key for key, number in self._keys.items() if key not in number_of}:
            row, key = next(
                (row, unknown[number])
                for row, of_row in enumerate(self._rows)
                for number in of_row
                if number in unknown
            )
            raise self._unknown(key, row, number_of)
        numbers = [number_of[key] for key in self._keys]
        told = {of_row: tuple(sorted({numbers[one] for one in of_row})) for of_row in self._distinct}
        if self._asked.target == "multi-label":
            return classes, [told[of_row] for of_row in self._rows]
        return classes, [told[of_row][0] for of_row in self._rows]

    def _unknown(self, key: str, row: int, accepted: Iterable[str]) -> UserError:
        """`key`: as the part of the row has it, or as all parts have it when all are read."""
        numbered = [] if self._here else self._known
        named = f" ({shown(numbered[int(key)])})" if key in map(str, range(len(numbered))) else ""
        near = "" if key.removeprefix("-").isdecimal() else did_you_mean(key, accepted)
        return UserError(
            f"{self._line(row)}: label {shown(key)}{named} is none of the classes {listed(accepted)}"
            + (f"; {near}" if near else "")
        )


def _classes(
    asked: Description, column: str, found: Mapping[str, int], known: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The classes, and which of them each value of the column means."""
    names = asked.names or tuple(known)
    if isinstance(asked.classes, dict):
        return names, {value: names.index(name) for value, name in asked.classes.items()}
    if set(names) & set(known):
        # Names that the data have too may come in another order.
        return names, {str(known.index(name)): n for n, name in enumerate(names) if name in known}
    if names and not found.keys() & set(names) and any(key.isdecimal() for key in found):
        # The numbers of the classes that are named.
        return names, {str(number): number for number in range(len(names))}
    if not names:
        whole = all(key.removeprefix("-").isdecimal() for key in found)
        names = tuple(sorted(found, key=int) if whole else sorted(found))
        if len(names) < 2:
            only = f"every row has {shown(names[0])}" if names else "no row has any"
            raise UserError(f"column '{column}' has one class only: {only}; there must be at least two")
    return names, {name: number for number, name in enumerate(names)}


def is_blank(value: Any) -> bool:
    """Whether a value is a hole: none, no number, or a text of spaces alone."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def listed(names: Iterable[str], most: int = 12) -> str:
    """Some names for a message, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
