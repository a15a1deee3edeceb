"""Tables of files as pyarrow has them, with the line of each row for messages. Nothing of a file is run."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from methods.errors import UserError, did_you_mean, shown

if TYPE_CHECKING:
    # Their import takes a while, and most plans read no table.
    import datasets
    import pyarrow as pa

#: A row of a CSV file may not be longer than this, in bytes.
BLOCK = 1 << 22

#: Half of a character beyond the first 65,536, of which JSON may name one alone, and UTF-8 has none.
_HALF = re.compile("[\ud800-\udfff]")

#: How many rows are read at once where the format does not say it.
ROWS = 10_000

#: How many rows with images are.
IMAGES = 100


@dataclass(frozen=True)
class Table:
    """Rows of one file, or of one split of a data set, of which only a part is in memory at a time."""

    #: Some of its columns, a part of the rows after the other; read anew each time. Raises UserError.
    parts: Callable[[Sequence[str]], Iterator[pa.Table | pa.RecordBatch]]
    #: What a message calls a row, such as "reviews.csv, line 17". Rows count from 0.
    line: Callable[[int], str]
    #: The classes' names of label columns that know them.
    names: dict[str, list[str]]


def read_csv(file: Path, wanted: Sequence[str]) -> Table:
    """Columns of a CSV file as texts; what is empty is null. Raises UserError."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    with _reading(file, lambda: _csv_fault(file, delimiter)):
        with _long_fields(), file.open(encoding="utf-8-sig", newline="") as stream:
            have = next(csv.reader(stream, delimiter=delimiter), [])
            # Not by Python's csv, which refuses long texts that pyarrow reads.
            rows = any(line.strip("\r\n") for line in stream)
        if not have:
            raise UserError(f"{file} is empty: it should begin with a line of column names")
        check_columns(str(file), wanted, have)
        if repeated := [name for name in wanted if have.count(name) > 1]:
            raise UserError(f"{file} has several columns {', '.join(repeated)}")

    def parts(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        if not rows:
            return
        with _reading(file, lambda: _undecodable_line(file) or _csv_fault(file, delimiter)):
            yield from arrow.open_csv(
                file,
                # Threads would read far ahead. The names may take several lines, which are one row.
                arrow.ReadOptions(
                    column_names=have, skip_rows_after_names=1, block_size=BLOCK, use_threads=False
                ),
                arrow.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                arrow.ConvertOptions(
                    include_columns=list(columns),
                    column_types=dict.fromkeys(columns, pa.string()),
                    strings_can_be_null=True,
                    null_values=[""],
                ),
            )

    return Table(parts, lambda row: f"{file}, line {_csv_line(file, delimiter, row)}", {})


def _csv_line(file: Path, delimiter: str, row: int) -> int:
    """The line, from 1, on which a row begins; a value in quotes may have several lines."""
    with _long_fields(), file.open(encoding="utf-8-sig", newline="") as stream:
        reader, ended, passed = csv.reader(stream, delimiter=delimiter), 0, -1
        for fields in reader:
            # pyarrow passes over empty lines.
            passed += bool(fields)
            if passed == row + 1:
                return ended + 1
            ended = reader.line_num
    return ended


def _csv_fault(file: Path, delimiter: str) -> str:
    """The first line that pyarrow cannot read, and why, as the end of a message; empty where none is."""
    with _long_fields(), file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader, begun = csv.reader(_lines_of(stream), delimiter=delimiter), 1
        try:
            for fields in reader:
                size = sum(len(field.encode(errors="surrogateescape")) for field in fields)
                if size > BLOCK:
                    return f", line {begun}: the row is longer than {BLOCK:,} bytes"
                begun = reader.line_num + 1
        except csv.Error as error:
            return f", line {begun}: {error}"
    return ""


def _lines_of(stream: TextIO) -> Iterator[str]:
    """Lines, of which none is longer than a row may be. Raises csv.Error."""
    while line := stream.readline(BLOCK + 1):
        if len(line) > BLOCK:
            raise csv.Error(f"the row is longer than {BLOCK:,} bytes")
        yield line


def _undecodable_line(file: Path) -> str:
    """The first line that is not in UTF-8, as the end of a message; empty where all are."""
    number = 1
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        while part := stream.readline(BLOCK):
            if _HALF.search(part):
                return f", line {number}: it is not in UTF-8"
            number += part.endswith("\n")
    return ""


@contextmanager
def _long_fields() -> Iterator[None]:
    """Inside, Python's csv takes fields as long as those that pyarrow reads."""
    before = csv.field_size_limit(BLOCK)
    try:
        yield
    finally:
        csv.field_size_limit(before)


class RetypedError(UserError):
    """A column is of a wider type than its first rows showed; read again, all its rows are of that one."""


def read_jsonl(file: Path, texts: Sequence[str], answers: Sequence[str] = ()) -> Table:
    """Columns of a file with a JSON object a line; `texts` hold strings. Raises UserError.

    Numbers and truths in the columns of `answers` become texts as JSON writes them, each by itself.

    A column is of one type in all parts. Where a later part widens it, as floats do a column of integers,
    reading stops with RetypedError, and begun anew it has the wider one from the first row on.
    """
    types: dict[str, pa.DataType] = {}

    def parts(columns: Sequence[str]) -> Iterator[pa.Table]:
        with _reading(file), file.open(encoding="utf-8-sig") as stream:
            objects = ((number, text) for number, text in enumerate(stream, 1) if text.strip())
            first = True
            while some := list(islice(objects, ROWS)):
                rows = [_object(file, number, text) for number, text in some]
                if first and not set(columns) <= {name for row in rows for name in row}:
                    check_columns(str(file), columns, _names(file))
                first = False
                found = {name: [row.get(name) for row in rows] for name in columns}
                for name in found.keys() & set(answers):
                    found[name] = [as_answer(value) for value in found[name]]
                yield _as_arrow(file, [number for number, _ in some], found, texts, types)

    def line(row: int) -> str:
        with file.open(encoding="utf-8-sig") as stream:
            numbers = (number for number, text in enumerate(stream, 1) if text.strip())
            return f"{file}, line {next(islice(numbers, row, None), row + 1)}"

    return Table(parts, line, {})


def as_answer(value: Any) -> Any:
    """A number or a truth as JSON writes it; anything else as it is."""
    return json.dumps(value) if isinstance(value, (bool, int, float)) else value


def _names(file: Path) -> list[str]:
    """All names in the objects of a file, in the order found."""
    with file.open(encoding="utf-8-sig") as stream:
        lines = ((number, text) for number, text in enumerate(stream, 1) if text.strip())
        return list(dict.fromkeys(name for number, text in lines for name in _object(file, number, text)))


def _object(file: Path, number: int, text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}, line {number}: it is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{file}, line {number}: it should be a JSON object, got {shown(row)}")
    return row


def _as_arrow(
    file: Path,
    numbers: Sequence[int],
    columns: dict[str, list[Any]],
    texts: Sequence[str],
    types: dict[str, pa.DataType],
) -> pa.Table:
    """Columns of JSON's values; `numbers` are the lines that they stand on.

    `types` has those of the rows before, and takes the ones that hold from now on.
    """
    import pyarrow as pa

    made = {}
    for name, values in columns.items():
        if name in texts:
            for number, value in zip(numbers, values, strict=True):
                if not isinstance(value, str | None):
                    raise UserError(
                        f"{file}, line {number}: column '{name}' should hold texts, got {shown(value)}"
                    )
        before = types.get(name, pa.null())
        try:
            array = pa.array(values, pa.string() if name in texts else None)
            types[name] = _wider(before, array.type)
            made[name] = array.cast(types[name])
        except UnicodeEncodeError as error:
            halved = [_HALF.search(json.dumps(value, ensure_ascii=False)) is not None for value in values]
            line = numbers[halved.index(True)]
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise UserError(f"{file}, line {line}: column '{name}' has half a character, {half}") from error
        except (pa.ArrowException, OverflowError) as error:
            raise UserError(
                f"{file}, lines {numbers[0]} to {numbers[-1]}: the values of column '{name}' are not of one "
                f"kind{'' if before == pa.null() else ' with those before'}: {error}"
            ) from error
        if before not in (types[name], pa.null()):
            raise RetypedError(f"{file}: the values of column '{name}' were of another kind when last read")
    return pa.table(made)


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that holds the values of both. Raises ArrowTypeError where there is none."""
    import pyarrow as pa

    both = [pa.schema({"values": each}) for each in (one, other)]
    return pa.unify_schemas(both, promote_options="permissive").field("values").type


def read_parquet(file: Path, wanted: Sequence[str]) -> Table:
    """Columns of a parquet file. Raises UserError."""
    from pyarrow import parquet

    with _reading(file):
        schema = parquet.read_schema(file)
        check_columns(str(file), wanted, schema.names)

    def parts(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        at_once = IMAGES if any(_holds_images(schema.field(name).type) for name in columns) else ROWS
        with _reading(file), parquet.ParquetFile(file) as opened:
            yield from opened.iter_batches(at_once, columns=list(columns))

    return Table(parts, lambda row: f"{file}, row {row}", _class_names(schema))


def read_dataset(folder: Path, wanted: Sequence[str]) -> dict[str, Table]:
    """Columns of what `save_to_disk` wrote, by split; one without splits is named "".

    Raises UserError.
    """
    import datasets

    with _reading(folder):
        loaded = datasets.load_from_disk(str(folder))
        splits = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
        found = {}
        for split, part in splits.items():
            where = f"{folder}, split {split}" if split else str(folder)
            check_columns(where, wanted, part.column_names)
            names = _class_names(part.features.arrow_schema)
            parts = partial(_parts, folder, part)
            found[split] = Table(parts, lambda row, where=where: f"{where}, row {row}", names)  # type: ignore[misc]
    return found


def _parts(folder: Path, split: datasets.Dataset, columns: Sequence[str]) -> Iterator[pa.Table]:
    with _reading(folder):
        yield from split.select_columns(list(columns)).with_format("arrow").iter(ROWS)


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
def _reading(file: Path, fault: Callable[[], str] = str) -> Iterator[None]:
    """Inside, whatever pyarrow and datasets say of a file becomes a UserError that names it.

    `fault` finds the line to be named after the file, and what is wrong there; empty where it finds none.
    """
    from pyarrow import ArrowException

    try:
        yield
    except UnicodeDecodeError as error:
        at = _undecodable_line(file) or f" is not in UTF-8: {error.reason} at byte {error.start}"
        raise UserError(f"{file}{at}") from error
    except (OSError, ValueError, KeyError, TypeError, csv.Error, ArrowException) as error:
        at = fault()
        raise UserError(f"{file}{at}" if at else f"{file} cannot be read: {error}") from error


def is_text(kind: pa.DataType) -> bool:
    from pyarrow import types

    inner = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(inner) or types.is_large_string(inner))


def blank(column: Any) -> int | None:
    """The first row of a column of texts with none, or with spaces alone; None where all rows have one."""
    from pyarrow import compute, types

    texts = compute.cast(column, column.type.value_type) if types.is_dictionary(column.type) else column
    holes = compute.fill_null(compute.equal(compute.utf8_trim_whitespace(texts), ""), True)
    row: int = compute.index(holes, True).as_py()
    return None if row < 0 else row


def _holds_images(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_struct(kind) or types.is_binary(kind) or types.is_large_binary(kind))


def embedded(where: Callable[[int], str], images: Any) -> Any:
    """The encoded images of a column, as bytes. Raises UserError for one that is not in the file.

    `where`: what a message calls the column in a row. `datasets.Image` stores a path beside the bytes. It is
    never followed: it could name any file of this machine, and any address.
    """
    from pyarrow import compute, types

    if types.is_struct(images.type) and images.type.get_field_index("bytes") >= 0:
        images = compute.struct_field(images, "bytes")
    if not (types.is_binary(images.type) or types.is_large_binary(images.type)):
        raise UserError(f"{where(0)} should hold embedded images, got values of type {images.type}")
    if images.null_count:
        row = compute.index(compute.is_null(images), True).as_py()
        raise UserError(f"{where(row)} has no embedded image; paths and addresses are not followed")
    return images
