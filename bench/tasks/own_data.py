"""The rows of data that a suite describes, wherever they are: inputs, labels, groups and splits."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.process.files import sha256
from bench.tasks.base import LazyImages, SplitName
from bench.tasks.description import SPLIT_WORDS, Description
from bench.tasks.pictures import decoded
from bench.tasks.tables import Table, embedded, is_text, read_csv, read_dataset, read_jsonl, read_parquet
from methods.errors import UserError, shown

#: What a column of numbers looks like in a CSV file.
_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"


@dataclass(frozen=True)
class Rows:
    """All rows, split after split."""

    #: Made when they are asked for, since a plan needs none.
    inputs: Callable[[], Sequence[Any]]
    #: As the data have them; a tuple a row where several columns are labels.
    labels: list[Any]
    #: The classes' names where the data know them.
    names: list[str] | None
    groups: list[str] | None
    splits: list[SplitName] | None
    #: What a message calls a row.
    line: Callable[[int], str]


def read_rows(asked: Description) -> Rows:
    """Raises UserError for data that cannot be read, and for rows with holes, by their line."""
    if asked.format in ("images", "image_list"):
        return _of_pictures(_pictures(asked))
    parts = list(_tables(asked))
    for split, table in parts:
        if not len(table.columns):
            raise UserError(f"{table.line(0)}: there is no row" + (f" of the {split} split" if split else ""))
    starts = [0, *accumulate(len(table.columns) for _, table in parts)]

    def line(row: int) -> str:
        part = bisect(starts, row) - 1
        return parts[part][1].line(row - starts[part])

    tables = [table for _, table in parts]
    for table in tables:
        _check_inputs(asked, table)
    labels = [column for name in _names(asked.label) for column in [_values(tables, name)]]
    several = isinstance(asked.label, tuple)
    groups = None
    if asked.group is not None:
        groups = [
            str(_there(value, asked.group, row, line))
            for row, value in enumerate(_values(tables, asked.group))
        ]
    return Rows(
        lambda: _inputs(asked, tables, line),
        list(zip(*labels, strict=True)) if several else labels[0],
        None if several else tables[0].names.get(_names(asked.label)[0]),
        groups,
        _splits(asked, parts, line),
        line,
    )


def _names(columns: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else columns or ()


def _tables(asked: Description) -> Iterator[tuple[SplitName | None, Table]]:
    """The tables of the data with the official split that each is by its file or name."""
    given, kind = getattr(asked, asked.format), asked.format
    columns = [
        name
        for field in (asked.text, asked.image, asked.label, asked.group, asked.split_by)
        for name in _names(field)
    ]
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
    texts = list(_names(asked.text))
    for split, file in given.items() if isinstance(given, dict) else ((None, given),):
        if kind == "csv":
            yield split, read_csv(file, columns)
        elif kind == "jsonl":
            yield split, read_jsonl(file, columns, texts)
        else:
            yield split, read_parquet(file, columns)


def _values(tables: Sequence[Table], column: str) -> list[Any]:
    return [value for table in tables for value in table.columns.column(column).to_pylist()]


def _there(value: Any, column: str, row: int, line: Callable[[int], str]) -> Any:
    if value is None:
        raise UserError(f"{line(row)}: no value in column '{column}'")
    return value


def _check_inputs(asked: Description, table: Table) -> None:
    """Raises UserError for holes in columns of inputs, and for columns of texts that hold something else."""
    from pyarrow import compute

    for name in (*_names(asked.text), *_names(asked.image)):
        column = table.columns.column(name)
        if (column.null_count and asked.format != "dataset") or (
            column.null_count and asked.text is not None
        ):
            row = compute.index(compute.is_null(column), True).as_py()
            raise UserError(f"{table.line(row)}: no value in column '{name}'")
    for name in _names(asked.text):
        column = table.columns.column(name)
        if not is_text(column.type):
            raise UserError(
                f"{table.line(0)}: column '{name}' should hold texts, got values of type {column.type}"
            )
        if asked.format == "csv" and compute.all(compute.match_substring_regex(column, _NUMBER)).as_py():
            raise UserError(
                f"{table.line(0)}: column '{name}' should hold texts, and all its values are numbers, as "
                f"{shown(column[0].as_py())}"
            )


def _inputs(asked: Description, tables: Sequence[Table], line: Callable[[int], str]) -> Sequence[Any]:
    if asked.text is not None:
        columns = [_values(tables, name) for name in _names(asked.text)]
        return columns[0] if isinstance(asked.text, str) else list(zip(*columns, strict=True))
    assert asked.image is not None
    if asked.format in ("csv", "jsonl"):
        given = getattr(asked, asked.format)
        roots = [file.parent for file in (given.values() if isinstance(given, dict) else [given])]
        paths = [
            (root, value)
            for root, table in zip(roots, tables, strict=True)
            for value in table.columns.column(asked.image).to_pylist()
        ]
        files = [(inside(root, value, line(row)), row) for row, (root, value) in enumerate(paths)]
        return LazyImages(files, lambda item: _decoded(item[0].read_bytes, line(item[1]), str(item[0])))
    images = [
        embedded(f"{table.line(0).rpartition(', ')[0]}: {asked.image}", table.columns.column(asked.image))
        for table in tables
    ]
    starts = [0, *accumulate(map(len, images))]

    def image(row: int) -> NDArray[np.uint8]:
        part = bisect(starts, row) - 1
        return _decoded(images[part][row - starts[part]].as_py, line(row), "its image")

    return LazyImages(range(starts[-1]), image)


def _splits(
    asked: Description, parts: Sequence[tuple[SplitName | None, Table]], line: Callable[[int], str]
) -> list[SplitName] | None:
    """The official splits; None where there are none."""
    found: list[SplitName] = []
    if asked.split_by is None:
        for split, table in parts:
            found += [split] * len(table.columns) if split else []
    else:
        for row, word in enumerate(_values([table for _, table in parts], asked.split_by)):
            split = asked.official(_there(word, asked.split_by, row, line))
            if split is None:
                known = asked.splits or SPLIT_WORDS
                raise UserError(
                    f"{line(row)}: {shown(word)} in column '{asked.split_by}' names no split; known are "
                    f"{', '.join(known)}, and `splits` may name others"
                )
            found.append(split)
    return _official(found)


def _official(splits: Sequence[SplitName]) -> list[SplitName] | None:
    """None where all is train, which is then dealt as any data are. Raises UserError where nothing is."""
    there = set(splits)
    if there and "train" not in there:
        raise UserError(f"there is no train split, only {' and '.join(sorted(there))}")
    return None if there <= {"train"} else list(splits)


# --- images in files ---


@dataclass(frozen=True)
class _Picture:
    path: Path
    label: str
    split: SplitName | None
    line: str


def _of_pictures(pictures: Sequence[_Picture]) -> Rows:
    return Rows(
        lambda: LazyImages(pictures, lambda p: _decoded(p.path.read_bytes, p.line, str(p.path))),
        [picture.label for picture in pictures],
        None,
        None,
        _official([picture.split for picture in pictures if picture.split]),
        lambda row: pictures[row].line,
    )


def _pictures(asked: Description) -> list[_Picture]:
    if asked.images is not None:
        return _by_class(asked, asked.images)
    given = asked.image_list
    named = given.items() if isinstance(given, dict) else ((None, given),)
    return [picture for split, file in named if file for picture in _listed(file, split)]


def _by_class(asked: Description, folder: Path) -> list[_Picture]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    below = _folders(folder)
    official = {path: asked.official(path.name) for path in below}
    if below and all(official.values()):
        homes: list[tuple[SplitName | None, Path]] = [(official[path], path) for path in below]
    else:
        homes = [(None, folder)]
    found = []
    for split, home in homes:
        for of_class in _folders(home):
            files = sorted(file for file in of_class.rglob("*") if file.is_file() and file.name[0] != ".")
            if not files:
                raise UserError(f"{of_class} has no image")
            for file in files:
                name = str(file.relative_to(folder))
                found.append(_Picture(inside(folder, name, str(folder)), of_class.name, split, f"{file}"))
    if not found:
        raise UserError(f"{folder} has no folder of images for each class")
    return found


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _listed(file: Path, split: SplitName | None) -> list[_Picture]:
    try:
        status = file.stat()
        found = _lines(file, status.st_size, status.st_mtime_ns)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if not found:
        raise UserError(f"{file} lists no image")
    return [_Picture(path, label, split, line) for path, label, line in found]


@lru_cache(maxsize=32)
def _lines(file: Path, size: int, changed: int) -> list[tuple[Path, str, str]]:
    """Path and label on each line of a list, and what a message calls the line."""
    found = []
    with file.open(encoding="utf-8-sig") as stream:
        for number, text in enumerate(stream, 1):
            if not text.strip():
                continue
            line = f"{file}, line {number}"
            match = re.fullmatch(r"(.+?)[\s,]+(\S+)", text.strip())
            if match is None:
                raise UserError(
                    f"{line}: it should hold the path of an image and its label, got {shown(text.strip())}"
                )
            found.append((inside(file.parent, match[1], line), match[2], line))
    return found


def inside(root: Path, name: str, line: str) -> Path:
    """The file of that name below a folder. Raises UserError for one that lies elsewhere or is not there."""
    try:
        path = (root / name).resolve()
        if Path(name).is_absolute() or not path.is_relative_to(root.resolve()):
            raise UserError(f"{line}: {shown(name)} leads out of {root}; images must lie below it")
        if not path.is_file():
            raise UserError(f"{line}: there is no image {path}")
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{line}: {shown(name)} is no path: {error}") from error
    return root / name


def _decoded(content: Callable[[], bytes], line: str, what: str) -> NDArray[np.uint8]:
    try:
        return decoded(content())
    except (OSError, ValueError) as error:
        where = line if what == line else f"{line}: {what}"
        raise UserError(f"{where} cannot be read: {error}") from error


# --- identity ---


def files_of(asked: Description) -> list[tuple[str, Path]]:
    """Every file that the data are made of, with a name that does not depend on where they lie."""
    if asked.format in ("images", "image_list"):
        root = asked.images
        names = [str(p.path.relative_to(root)) if root else f"{p.split} {p.label}" for p in _pictures(asked)]
        return list(zip(names, (p.path for p in _pictures(asked)), strict=True))
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
