"""Reads the rows of tables: inputs, labels, groups and official splits."""

from __future__ import annotations

import sys
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from tensorbench.methods.errors import UserError, shown
from tensorbench.tasks.description import SPLIT_WORDS, Description
from tensorbench.tasks.images import EncodedImages
from tensorbench.tasks.labels import is_blank, read_labels
from tensorbench.tasks.tables import Table, check_texts, embedded_images, names_of
from tensorbench.tasks.task import SPLITS, SplitName

#: Matches a number in a CSV file.
NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"


@dataclass(frozen=True)
class Rows:
    """The rows of a task's tables, numbered from 0 through all tables, in the form of `Examples`."""

    data: Description
    tables: Sequence[Table]
    classes: tuple[str, ...]
    labels: Sequence[Any]
    groups: list[str] | None
    splits: list[SplitName] | None

    def inputs(self) -> Sequence[Any]:
        """Returns the texts, pairs of texts, prompts or images. Images are read when they are accessed."""
        data, line = self.data, _line(self.tables)
        if data.text is not None:
            columns = [
                [text for table in self.tables for text in table.columns[name].to_pylist()]
                for name in names_of(data.text)
            ]
            if isinstance(data.text, tuple):
                return list(zip(*columns, strict=True))
            if data.target != "generation" or data.template == "{prompt}":
                return columns[0]
            return [data.template.replace("{prompt}", prompt) for prompt in columns[0]]
        items: list[Any] = []
        for table in self.tables:
            items += embedded_images(table, data.image or "") if table.files is None else table.files

        def where(row: int) -> str:
            file = items[row] if isinstance(items[row], Path) else "its image"
            return line(row) if line(row) == str(file) else f"{line(row)}: {file}"

        return EncodedImages(range(len(items)), lambda row: _content(items[row]), where)


def _content(item: Any) -> bytes:
    return item.read_bytes() if isinstance(item, Path) else bytes(item.as_py())


def _line(tables: Sequence[Table]) -> Any:
    """Returns a function that returns the name of a row in messages, numbered through all tables."""
    starts = [0, *accumulate(len(table.columns) for table in tables)]

    def line(row: int) -> str:
        number = min(bisect(starts, row), len(tables)) - 1
        return tables[number].line(row - starts[number])

    return line


def read_rows(data: Description, tables: Sequence[Table], *, blank: bool = False) -> Rows:
    """Reads labels, groups and official splits, and checks the inputs. `blank` accepts texts without words.

    Raises UserError for a table without rows, for a row that contradicts the description, for official splits
    without train, and for a group in several of them.
    """
    for table in tables:
        _check_inputs(data, table, blank)
    classes, labels = read_labels(data, tables, _line(tables))
    groups = None
    if data.group is not None:
        # A number may be an integer in one file and a float in another. Sharing one text object per group
        # saves memory.
        values = (value for _, _, value in _filled(tables, data.group))
        integral = (int(v) if isinstance(v, float) and v.is_integer() else v for v in values)
        groups = [sys.intern(str(value)) for value in integral]
    splits = [table.split for table in tables if table.split for _ in range(len(table.columns))]
    if data.split_by is not None:
        for table, row, word in _filled(tables, data.split_by):
            if (split := data.official(word)) is None:
                raise UserError(
                    f"{table.line(row)}: {shown(word)} in column '{data.split_by}' names no split; known are "
                    f"{', '.join(data.splits or SPLIT_WORDS)}, and `splits` may name others"
                )
            splits.append(split)
    if splits and "train" not in splits:
        raise UserError(f"there is no train split, only {' and '.join(sorted(set(splits)))}")
    if groups is not None and splits:
        _check_parted(str(data.group), groups, splits)
    # Rows that are all for training are dealt, like those of data without official splits.
    return Rows(data, tables, classes, labels, groups, None if set(splits) <= {"train"} else splits)


def _check_parted(column: str, groups: Sequence[str], splits: Sequence[SplitName]) -> None:
    """Raises UserError for a group with rows in several official splits, which `group` forbids."""
    homes: defaultdict[str, set[SplitName]] = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        homes[group].add(split)
    parted = [
        f"{shown(group)} is in {', '.join(split for split in SPLITS if split in of)}"
        for group, of in homes.items()
        if len(of) > 1
    ]
    if parted:
        more = f" and {len(parted) - 3:,} more" if len(parted) > 3 else ""
        raise UserError(
            f"group: rows with the same value in column '{column}' are in several official splits: "
            f"{'; '.join(parted[:3])}{more}; put all rows of a value into one split, or leave out `group` or "
            "the official splits"
        )


def _check_inputs(data: Description, table: Table, blank: bool) -> None:
    from pyarrow import compute

    if not len(table.columns):
        of_split = f" of the {table.split} split" if table.split else ""
        raise UserError(f"{table.line(0)}: there is no row{of_split}")
    for name in names_of(data.text):
        check_texts(table, name, blank=blank)
        column = table.columns[name]
        if data.format == "csv" and compute.all(compute.match_substring_regex(column, NUMBER)).as_py():
            raise UserError(
                f"{table.line(0)}: column '{name}' should hold texts, and all its values are numbers, such "
                f"as {shown(column[0].as_py())}"
            )
    if data.image is not None and table.files is None:
        embedded_images(table, data.image)


def _filled(tables: Sequence[Table], column: str) -> Iterator[tuple[Table, int, Any]]:
    """Yields table, row and value of a column. Raises UserError for a row without a value."""
    for table in tables:
        for row, value in enumerate(table.columns[column].to_pylist()):
            if is_blank(value):
                raise UserError(f"{table.line(row)}: no value in column '{column}'")
            yield table, row, value
