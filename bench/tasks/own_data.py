"""The rows of data that a suite describes, wherever they are: inputs, labels, groups and splits."""

from __future__ import annotations

import hashlib
import sys
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.process.files import sha256
from bench.tasks.base import LazyImages, SplitName, Streamed
from bench.tasks.description import SPLIT_WORDS, Description
from bench.tasks.own_images import Picture, decoded_image, inside, pictures_of
from bench.tasks.own_labels import Labels, is_blank, read_labels
from bench.tasks.tables import (
    RetypedError,
    Table,
    blank,
    embedded,
    is_text,
    read_csv,
    read_dataset,
    read_jsonl,
    read_parquet,
)
from methods.errors import UserError, shown

#: What a column of numbers looks like in a CSV file.
_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"


@dataclass(frozen=True)
class Rows:
    """All rows, split after split."""

    #: Made when they are asked for, since a plan needs none.
    inputs: Callable[[], Sequence[Any]]
    classes: tuple[str, ...]
    #: As `Examples` has them.
    labels: Sequence[Any]
    groups: list[str] | None
    splits: list[SplitName] | None


def read_rows(asked: Description) -> Rows:
    """Reads all but the inputs, of which it only sees whether they are there.

    Raises UserError for data that cannot be read, and for rows with holes, by their line.
    """
    if asked.format in ("images", "image_list"):
        return _of_pictures(asked, pictures_of(asked))
    reader = _read(asked, list(_tables(asked)))
    classes, labels = reader.labels.finish()
    return Rows(reader.inputs, classes, labels, reader.groups, _official(reader.splits))


def _read(asked: Description, tables: Sequence[tuple[SplitName | None, Table]]) -> _Reader:
    """What has gone through the tables, with the types of columns that hold for the whole."""
    while True:
        reader = _Reader(asked, tables)
        try:
            reader.read()
        except RetypedError:
            continue
        return reader


def _names(columns: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else columns or ()


def _tables(asked: Description) -> Iterator[tuple[SplitName | None, Table]]:
    """The tables of the data with the official split that each is by its file or name."""
    given, kind = getattr(asked, asked.format), asked.format
    columns = _columns(asked)
    if kind == "dataset":
        for word, table in read_dataset(given, columns).items():
            split = asked.official(word) if word else None
            if word and split is None:
                if asked.splits is not None:
                    continue  # what is not named there is left out
                raise UserError(
                    f"{given}: its split '{word}' is none of {', '.join(SPLIT_WORDS)}; say which of ours "
                    f"each is, as in splits: {{{word}: train}}"
                )
            yield split, table
        return
    for split, file in given.items() if isinstance(given, dict) else ((None, given),):
        if kind == "csv":
            yield split, read_csv(file, columns)
        elif kind == "jsonl":
            answers = _names(asked.label) if asked.target == "generation" else ()
            yield split, read_jsonl(file, _names(asked.text), answers)
        else:
            yield split, read_parquet(file, columns)


def _columns(asked: Description) -> list[str]:
    fields = (asked.text, asked.image, asked.label, asked.group, asked.split_by)
    return list(dict.fromkeys(name for field in fields for name in _names(field)))


class _Reader:
    """Goes through tables part by part and keeps labels, groups and splits."""

    def __init__(self, asked: Description, tables: Sequence[tuple[SplitName | None, Table]]) -> None:
        self._asked, self._tables = asked, tables
        #: The first row of each table, and of what follows.
        self._starts = [0]
        self.labels = Labels(asked, self._named(tables[0][1]), self.line)
        self.groups: list[str] | None = None if asked.group is None else []
        #: Only of rows of which the data say it.
        self.splits: list[SplitName] = []

    def _named(self, table: Table) -> list[str] | None:
        """The names of the classes where a table has them."""
        return table.names.get(self._asked.label) if isinstance(self._asked.label, str) else None

    def line(self, row: int) -> str:
        """What a message calls a row."""
        number = min(bisect(self._starts, row), len(self._tables)) - 1
        return self._tables[number][1].line(row - self._starts[number])

    def read(self) -> None:
        """Raises UserError for what is not as described."""
        for split, table in self._tables:
            rows, numbers = 0, set(_names(self._asked.text) if self._asked.format == "csv" else ())
            sample: dict[str, Any] = {}
            for part in table.parts(_columns(self._asked)):
                self._check_inputs(table, part, rows)
                numbers = {name for name in numbers if _all_numbers(part[name])}
                sample = sample or {name: part[name][0].as_py() for name in numbers}
                self._add(part, split, self._named(table))
                rows += len(part)
            if not rows:
                raise UserError(
                    f"{table.line(0)}: there is no row" + (f" of the {split} split" if split else "")
                )
            for name in sorted(numbers):
                raise UserError(
                    f"{table.line(0)}: column '{name}' should hold texts, and all its values are numbers, as "
                    f"{shown(sample[name])}"
                )
            self._starts.append(self._starts[-1] + rows)

    def _check_inputs(self, table: Table, part: Any, before: int) -> None:
        """Raises UserError for holes in columns of inputs, and for columns of texts with something else."""
        from pyarrow import compute

        asked = self._asked
        for name in (*_names(asked.text), *_names(asked.image)):
            column = part[name]
            if column.null_count and (asked.format != "dataset" or asked.text is not None):
                row = compute.index(compute.is_null(column), True).as_py()
                raise UserError(f"{table.line(before + row)}: no value in column '{name}'")
            if asked.text is not None and not is_text(column.type):
                raise UserError(
                    f"{table.line(0)}: column '{name}' should hold texts, got values of type {column.type}"
                )
            if asked.text is not None and (hole := blank(column)) is not None:
                raise UserError(f"{table.line(before + hole)}: no value in column '{name}'")
            if asked.image is not None and asked.format not in ("csv", "jsonl"):
                embedded(partial(self._image, table, before), column)

    def _image(self, table: Table, before: int, row: int) -> str:
        return f"{table.line(before + row)}: {self._asked.image}"

    def _add(self, part: Any, split: SplitName | None, named: list[str] | None) -> None:
        asked, first = self._asked, len(self.splits)
        columns = [part[name].to_pylist() for name in _names(asked.label)]
        self.labels.add(zip(*columns, strict=True) if isinstance(asked.label, tuple) else columns[0], named)
        if self.groups is not None:
            assert asked.group is not None
            for row, value in enumerate(part[asked.group].to_pylist(), len(self.groups)):
                there = self._there(value, asked.group, row)
                # A file of JSON may have floats where another one has the same numbers as integers.
                whole = isinstance(there, float) and there.is_integer()
                # One text for all rows of a group.
                self.groups.append(sys.intern(str(int(there) if whole else there)))
        if asked.split_by is None:
            self.splits += [split] * len(part) if split else []
            return
        for row, word in enumerate(part[asked.split_by].to_pylist(), first):
            official = asked.official(self._there(word, asked.split_by, row))
            if official is None:
                known = asked.splits or SPLIT_WORDS
                raise UserError(
                    f"{self.line(row)}: {shown(word)} in column '{asked.split_by}' names no split; known are "
                    f"{', '.join(known)}, and `splits` may name others"
                )
            self.splits.append(official)

    def _there(self, value: Any, column: str, row: int) -> Any:
        if is_blank(value):
            raise UserError(f"{self.line(row)}: no value in column '{column}'")
        return value

    def inputs(self) -> Sequence[Any]:
        """The inputs, which are read anew whenever they are gone through. Raises UserError."""
        asked, count = self._asked, self._starts[-1]
        if asked.text is not None:
            names = _names(asked.text)
            if isinstance(asked.text, str):
                return Streamed(count, lambda: (value for (value,) in self._values(names)))
            return Streamed(count, lambda: self._values(names))
        assert asked.image is not None
        names = (asked.image,)
        if asked.format not in ("csv", "jsonl"):
            return Streamed(count, lambda: self._decoded(names))
        given = getattr(asked, asked.format)
        roots = [file.parent for file in (given.values() if isinstance(given, dict) else [given])]
        paths = enumerate(value for (value,) in self._values(names))
        files = [
            (inside(roots[bisect(self._starts, row) - 1], path, self.line(row)), row) for row, path in paths
        ]
        return LazyImages(
            files, lambda item: decoded_image(item[0].read_bytes, self.line(item[1]), str(item[0]))
        )

    def _values(self, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        for _, table in self._tables:
            for part in table.parts(names):
                yield from zip(*(part[name].to_pylist() for name in names), strict=True)

    def _decoded(self, names: Sequence[str]) -> Iterator[NDArray[np.uint8]]:
        row = 0
        for _, table in self._tables:
            for part in table.parts(names):
                for image in embedded(partial(self._image, table, 0), part[names[0]]):
                    yield decoded_image(image.as_py, self.line(row), "its image")
                    row += 1


def _all_numbers(column: Any) -> bool:
    from pyarrow import compute

    return bool(compute.all(compute.match_substring_regex(column, _NUMBER)).as_py())


def _official(splits: Sequence[SplitName]) -> list[SplitName] | None:
    """None where all is train, which is then dealt as any data are. Raises UserError where nothing is."""
    there = set(splits)
    if there and "train" not in there:
        raise UserError(f"there is no train split, only {' and '.join(sorted(there))}")
    return None if there <= {"train"} else list(splits)


def _of_pictures(asked: Description, pictures: Sequence[Picture]) -> Rows:
    labels = [picture.label for picture in pictures]
    classes, read = read_labels(asked, labels, lambda row: pictures[row].line)
    return Rows(
        lambda: LazyImages(pictures, lambda p: decoded_image(p.path.read_bytes, p.line, str(p.path))),
        classes,
        read,
        None,
        _official([picture.split for picture in pictures if picture.split]),
    )


# --- identity ---


def files_of(asked: Description) -> list[tuple[str, Path]]:
    """Every file that the data are made of, with a name that does not depend on where they lie."""
    if asked.format in ("images", "image_list"):
        root = asked.images
        return [
            (str(p.path.relative_to(root)) if root else f"{p.split} {p.label}", p.path)
            for p in pictures_of(asked)
        ]
    if asked.dataset is not None:
        return [
            (str(file.relative_to(asked.dataset)), file) for file in sorted(asked.dataset.rglob("*.arrow"))
        ]
    found = list(asked.paths.items())
    return found + [(str(row), path) for row, path in enumerate(_images_of(asked))]


def _images_of(asked: Description) -> list[Path]:
    """The images that a table names by their paths."""
    if asked.image is None or asked.format not in ("csv", "jsonl"):
        return []
    inputs = read_rows(asked).inputs()
    assert isinstance(inputs, LazyImages)
    return [item[0] for item in inputs.items]


def content_hash(asked: Description) -> str:
    """Hex sha256 over all files, whatever their folder."""
    digest = hashlib.sha256()
    for name, file in files_of(asked):
        digest.update(f"{name} {sha256(file)}\n".encode())
    return digest.hexdigest()
