"""Reads the rows of data that a suite describes: inputs, labels, groups and official splits."""

from __future__ import annotations

import hashlib
import sys
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from tensorbench.machine.files import sha256
from tensorbench.methods.errors import UserError, shown
from tensorbench.tasks.description import SPLIT_WORDS, Description
from tensorbench.tasks.images import EncodedImages
from tensorbench.tasks.own_images import Picture, inside, pictures_of
from tensorbench.tasks.own_labels import Part, is_blank, read_labels
from tensorbench.tasks.table_files import (
    Table,
    blank_row,
    embedded_images,
    is_text,
    read_csv,
    read_dataset,
    read_jsonl,
    read_parquet,
)
from tensorbench.tasks.task import SplitName

#: Matches a number in a CSV file.
NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"


@dataclass(frozen=True)
class Rows:
    """The rows of described data, in the form of `Examples`."""

    #: Reads the inputs. They are read only when needed, since making a task needs only the other fields.
    inputs: Callable[[], Sequence[Any]]
    classes: tuple[str, ...]
    labels: Sequence[Any]
    groups: list[str] | None
    splits: list[SplitName] | None


def read_rows(description: Description) -> Rows:
    """Reads the described data.

    Raises UserError for files that cannot be read, and for a row that contradicts the description. Errors
    about a row name its line, its row number or, in folders of images, its file.
    """
    if description.format in ("images", "image_list"):
        return _picture_rows(description, pictures_of(description))
    tables = [*_tables(description)]
    for split, table in tables:
        _check_inputs(description, table, split)
    rows = _TableRows(description, tables)
    classes, labels = rows.labels()
    return Rows(rows.inputs, classes, labels, rows.groups(), _official(rows.splits()))


def _names(columns: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else columns or ()


def _tables(description: Description) -> Iterator[tuple[SplitName | None, Table]]:
    """Yields the tables of the data. Each comes with its official split, or None if it has none."""
    source, kind = getattr(description, description.format), description.format
    fields = ("text", "image", "label", "group", "split_by")
    names = list(dict.fromkeys(chain.from_iterable(_names(getattr(description, field)) for field in fields)))
    if kind == "dataset":
        for word, table in read_dataset(source, names).items():
            split = description.official(word) if word else None
            if split is not None or not word:
                yield split, table
            elif description.splits is None:
                raise UserError(
                    f"{source}: its split '{word}' is none of {', '.join(SPLIT_WORDS)}; say which of ours "
                    f"each is, as in splits: {{{word}: train}}"
                )
        return
    for split, file in source.items() if isinstance(source, dict) else ((None, source),):
        if kind == "csv":
            yield split, read_csv(file, names)
        elif kind == "jsonl":
            answers = _names(description.label) if description.target == "generation" else ()
            yield split, read_jsonl(file, names, _names(description.text), answers)
        else:
            yield split, read_parquet([file], names)


def _check_inputs(description: Description, table: Table, split: SplitName | None) -> None:
    """Raises UserError for a table without rows, and for missing inputs or inputs of the wrong type."""
    from pyarrow import compute

    if not len(table.columns):
        raise UserError(f"{table.line(0)}: there is no row" + (f" of the {split} split" if split else ""))
    for name in _names(description.text):
        column = table.columns[name]
        if not is_text(column.type):
            raise UserError(
                f"{table.line(0)}: column '{name}' should hold texts, got values of type {column.type}"
            )
        if (row := blank_row(column)) is not None:
            raise UserError(f"{table.line(row)}: no value in column '{name}'")
        if description.format == "csv" and compute.all(compute.match_substring_regex(column, NUMBER)).as_py():
            raise UserError(
                f"{table.line(0)}: column '{name}' should hold texts, and all its values are numbers, such "
                f"as {shown(column[0].as_py())}"
            )
    if description.image is None:
        return
    column = table.columns[description.image]
    if description.format not in ("csv", "jsonl"):
        embedded_images(column, lambda row: f"{table.line(row)}: {description.image}")
    elif column.null_count:
        row = compute.index(compute.is_null(column), True).as_py()
        raise UserError(f"{table.line(row)}: no value in column '{description.image}'")


class _TableRows:
    """The rows of several tables, numbered from 0 through all tables."""

    def __init__(self, description: Description, tables: Sequence[tuple[SplitName | None, Table]]) -> None:
        self._description, self._tables = description, tables
        self._starts = [0, *accumulate(len(table.columns) for _, table in tables)]

    def _table(self, row: int) -> int:
        return min(bisect(self._starts, row), len(self._tables)) - 1

    def line(self, row: int) -> str:
        """Returns the name of a row in messages."""
        number = self._table(row)
        return self._tables[number][1].line(row - self._starts[number])

    def _values(self, name: str) -> list[Any]:
        return [value for _, table in self._tables for value in table.columns[name].to_pylist()]

    def labels(self) -> tuple[tuple[str, ...], Sequence[Any]]:
        """Returns the names of the classes, and the label of each row."""
        column, parts = self._description.label, list[Part]()
        for _, table in self._tables:
            values = [table.columns[name].to_pylist() for name in _names(column)]
            if isinstance(column, tuple):
                parts.append((list(zip(*values, strict=True)), None))
            else:
                parts.append((values[0], table.class_names.get(column or "")))
        return read_labels(self._description, parts, self.line)

    def groups(self) -> list[str] | None:
        """Returns the key of each row's group. None if there is no group column."""
        if (name := self._description.group) is None:
            return None
        groups = []
        for row, value in enumerate(self._values(name)):
            self._refuse_blank(value, name, row)
            # A number may be an integer in one file and a float in another.
            integral = isinstance(value, float) and value.is_integer()
            # Sharing one text object per group saves memory.
            groups.append(sys.intern(str(int(value) if integral else value)))
        return groups

    def splits(self) -> list[SplitName]:
        """Returns the official split of each row. Empty if the data have no official splits."""
        description = self._description
        if (name := description.split_by) is None:
            return [split for split, table in self._tables if split for _ in range(len(table.columns))]
        splits = []
        for row, word in enumerate(self._values(name)):
            self._refuse_blank(word, name, row)
            if (split := description.official(word)) is None:
                raise UserError(
                    f"{self.line(row)}: {shown(word)} in column '{name}' names no split; known are "
                    f"{', '.join(description.splits or SPLIT_WORDS)}, and `splits` may name others"
                )
            splits.append(split)
        return splits

    def _refuse_blank(self, value: Any, column: str, row: int) -> None:
        if is_blank(value):
            raise UserError(f"{self.line(row)}: no value in column '{column}'")

    def inputs(self) -> Sequence[Any]:
        """Returns the texts or images of all rows.

        Raises UserError for an image that is missing or outside the folder of its table.
        """
        description = self._description
        if description.text is not None:
            columns = [self._values(name) for name in _names(description.text)]
            return columns[0] if isinstance(description.text, str) else list(zip(*columns, strict=True))
        assert description.image is not None
        if description.format in ("csv", "jsonl"):
            files = [*self.image_files()]
            return EncodedImages(
                range(len(files)),
                lambda row: files[row].read_bytes(),
                lambda row: f"{self.line(row)}: {files[row]}",
            )
        columns = [embedded_images(table.columns[description.image], table.line) for _, table in self._tables]

        def content(row: int) -> bytes:
            number = self._table(row)
            return bytes(columns[number][row - self._starts[number]].as_py())

        return EncodedImages(range(self._starts[-1]), content, lambda row: f"{self.line(row)}: its image")

    def image_files(self) -> Iterator[Path]:
        """Yields the image file of each row, for tables that hold paths."""
        assert self._description.image is not None
        sources = list(self._description.paths.values())
        for row, path in enumerate(self._values(self._description.image)):
            yield inside(sources[self._table(row)].parent, path, self.line(row))


def _official(splits: list[SplitName]) -> list[SplitName] | None:
    """Returns the official splits. Returns None if all rows are to be dealt.

    All rows are dealt if there are no official splits, or if all rows are in train. Raises UserError if there
    are official splits without train.
    """
    if splits and "train" not in splits:
        raise UserError(f"there is no train split, only {' and '.join(sorted(set(splits)))}")
    return None if set(splits) <= {"train"} else splits


def _picture_rows(description: Description, pictures: Sequence[Picture]) -> Rows:
    classes, labels = read_labels(
        description, [([picture.label for picture in pictures], None)], lambda row: pictures[row].line
    )

    def where(picture: Picture) -> str:
        return picture.line if picture.line == str(picture.path) else f"{picture.line}: {picture.path}"

    return Rows(
        lambda: EncodedImages(pictures, lambda picture: picture.path.read_bytes(), where),
        classes,
        labels,
        None,
        _official([picture.split for picture in pictures if picture.split]),
    )


# --- identity ---


def files_of(description: Description) -> list[tuple[str, Path]]:
    """Returns every file of the data with a name. The name stays the same if the data are moved."""
    if description.format in ("images", "image_list"):
        root = description.images
        return [
            (str(p.path.relative_to(root)) if root else f"{p.split} {p.label}", p.path)
            for p in pictures_of(description)
        ]
    if (folder := description.dataset) is not None:
        # `datasets` writes the results of `map` and `filter` there, under names that begin with "cache-".
        files = sorted(file for file in folder.rglob("*.arrow") if not file.name.startswith("cache-"))
        return [(str(file.relative_to(folder)), file) for file in files]
    paths = list(description.paths.items())
    if description.image is None or description.format not in ("csv", "jsonl"):
        return paths
    rows = _TableRows(description, [*_tables(description)])
    return paths + [(str(row), path) for row, path in enumerate(rows.image_files())]


def content_hash(description: Description) -> str:
    """Returns the hex SHA-256 over names and contents of all files. Moving the data does not change it."""
    digest = hashlib.sha256()
    for name, file in files_of(description):
        digest.update(f"{name} {sha256(file)}\n".encode())
    return digest.hexdigest()
