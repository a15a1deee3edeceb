"""Tables of files as pyarrow has them, with the line of each row for messages. Nothing of a file is run."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.errors import UserError, did_you_mean

if TYPE_CHECKING:
    # Its import takes a while, and most plans read no table.
    import pyarrow as pa

#: A row of a JSONL file may not be longer than this, in bytes.
BLOCK = 1 << 24


@dataclass(frozen=True)
class Table:
    """Rows of one file, or of one split of a data set."""

    #: The wanted columns.
    columns: pa.Table
    #: What a message calls a row, such as "reviews.csv, line 17". Rows count from 0.
    line: Callable[[int], str]
    #: The classes' names of label columns that know them.
    names: dict[str, list[str]]


def read_csv(file: Path, wanted: Iterable[str]) -> Table:
    """Columns of a CSV file as texts; what is empty is null. Raises UserError."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    wanted = list(dict.fromkeys(wanted))
    with _reading(file):
        with file.open(encoding="utf-8-sig", newline="") as stream:
            have = next(csv.reader(stream, delimiter=delimiter), [])
        if not have:
            raise UserError(f"{file} is empty: it should begin with a line of column names")
        check_columns(str(file), wanted, have)
        if repeated := [name for name in wanted if have.count(name) > 1]:
            raise UserError(f"{file} has several columns {', '.join(repeated)}")
        columns = arrow.read_csv(
            file,
            arrow.ReadOptions(column_names=have, skip_rows=1, block_size=BLOCK),
            arrow.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            arrow.ConvertOptions(
                include_columns=wanted,
                column_types=dict.fromkeys(wanted, pa.string()),
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
    return Table(columns, lambda row: f"{file}, line {_csv_line(file, delimiter, row)}", {})


def _csv_line(file: Path, delimiter: str, row: int) -> int:
    """The line, from 1, on which a row begins; a value in quotes may have several lines."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader, ended, passed = csv.reader(stream, delimiter=delimiter), 0, -1
        for fields in reader:
            # pyarrow passes over empty lines.
            passed += bool(fields)
            if passed == row + 1:
                return ended + 1
            ended = reader.line_num
    return ended


def read_jsonl(file: Path, wanted: Iterable[str], texts: Iterable[str]) -> Table:
    """Columns of a file with a JSON object a line; `texts` hold strings. Raises UserError."""
    import pyarrow as pa
    from pyarrow import json as arrow

    wanted = list(dict.fromkeys(wanted))
    with _reading(file):
        # Otherwise what looks like a date would be one.
        schema = pa.schema([(name, pa.string()) for name in texts])
        columns = arrow.read_json(
            file, arrow.ReadOptions(block_size=BLOCK), arrow.ParseOptions(explicit_schema=schema)
        )
        found = {name for name in columns.column_names if columns.column(name).null_count < len(columns)}
        check_columns(str(file), wanted, [name for name in columns.column_names if name in found])

    def line(row: int) -> str:
        with file.open(encoding="utf-8") as stream:
            numbers = (number for number, text in enumerate(stream, 1) if text.strip())
            return f"{file}, line {next((n for i, n in enumerate(numbers) if i == row), row + 1)}"

    return Table(columns.select(wanted), line, {})


def read_parquet(file: Path, wanted: Iterable[str]) -> Table:
    """Columns of a parquet file. Raises UserError."""
    from pyarrow import parquet

    wanted = list(dict.fromkeys(wanted))
    with _reading(file):
        schema = parquet.read_schema(file)
        check_columns(str(file), wanted, schema.names)
        columns = parquet.read_table(file, columns=wanted)
    return Table(columns, lambda row: f"{file}, row {row}", _class_names(schema))


def read_dataset(folder: Path, wanted: Iterable[str]) -> dict[str, Table]:
    """Columns of what `save_to_disk` wrote, by split; one without splits is named "".

    Raises UserError.
    """
    import datasets

    wanted = list(dict.fromkeys(wanted))
    with _reading(folder):
        loaded = datasets.load_from_disk(str(folder))
        parts = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
        found = {}
        for split, part in parts.items():
            where = f"{folder}, split {split}" if split else str(folder)
            check_columns(where, wanted, part.column_names)
            columns = part.select_columns(wanted).with_format("arrow")[:]
            names = _class_names(part.features.arrow_schema)
            found[split] = Table(columns, lambda row, where=where: f"{where}, row {row}", names)  # type: ignore[misc]
    return found


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of classes that `datasets` wrote beside a table."""
    import datasets

    if b"huggingface" not in (schema.metadata or {}):
        return {}
    features = datasets.Features.from_arrow_schema(schema)
    inner = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return {name: list(of.names) for name, of in inner.items() if isinstance(of, datasets.ClassLabel)}


def check_columns(where: str, wanted: Iterable[str], have: list[str]) -> None:
    """Raises UserError for a column that is not there, with the nearest."""
    for name in wanted:
        if name not in have:
            near = did_you_mean(name, have)
            raise UserError(
                f"{where} has no column '{name}'{': ' + near if near else ''}; it has {', '.join(have[:40])}"
            )


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Inside, whatever pyarrow and datasets say of a file becomes a UserError that names it."""
    from pyarrow import ArrowException

    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not in UTF-8: {error.reason} at byte {error.start}") from error
    except (OSError, ValueError, KeyError, TypeError, csv.Error, ArrowException) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def is_text(kind: pa.DataType) -> bool:
    from pyarrow import types

    inner = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(inner) or types.is_large_string(inner))


def embedded(where: str, images: Any) -> Any:
    """The encoded images of a column, as bytes. Raises UserError for one that is not in the file.

    `datasets.Image` stores a path beside the bytes. It is never followed: it could name any file of this
    machine, and any address.
    """
    from pyarrow import compute, types

    if types.is_struct(images.type) and images.type.get_field_index("bytes") >= 0:
        images = compute.struct_field(images, "bytes")
    if not (types.is_binary(images.type) or types.is_large_binary(images.type)):
        raise UserError(f"{where} should hold embedded images, got values of type {images.type}")
    if images.null_count:
        row = compute.index(compute.is_null(images), True).as_py()
        raise UserError(
            f"{where} has no embedded image in {images.null_count} of {len(images)} rows, the first of "
            f"them row {row}; paths and addresses are not followed"
        )
    return images
