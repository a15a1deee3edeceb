"""Reads tables from CSV, JSONL, parquet and `datasets` files. Never runs code from a file.

Every table can tell the line of a row, for messages.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorbench.methods.errors import UserError, did_you_mean, shown

if TYPE_CHECKING:
    # Imported late: the import is slow, and most plans read no table.
    import pyarrow as pa

_SPREADSHEETS = (".xlsx", ".xls", ".ods")

#: The largest number of columns. pandas needs a minute for 500,000.
MOST_COLUMNS = 10_000

#: Half of a surrogate pair, which JSON can express and UTF-8 cannot.
_HALF = re.compile("[\ud800-\udfff]")

#: The names of JSON types in messages.
_KINDS = {str: "texts", bool: "true or false", list: "lists", dict: "objects", float: "numbers"}


@dataclass(frozen=True)
class Table:
    """Selected columns of one file, or of one split of a data set."""

    columns: pa.Table
    #: Returns the name of a row (from 0) in messages, such as "reviews.csv, line 17".
    line: Callable[[int], str]
    #: The class names of each column that stores class names, in the order of their numbers.
    class_names: dict[str, list[str]]


def read_csv(file: Path, names: Sequence[str] | None) -> Table:
    """Reads the columns `names` of a CSV file as texts. None reads all columns. An empty value is null.

    Raises UserError for a file that cannot be read, and for missing or repeated columns.
    """
    import pandas as pd
    import pyarrow as pa

    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    options: dict[str, Any] = {"sep": delimiter, "dtype": str, "keep_default_na": False}
    with _reading(file):
        with _csv_reader(file, delimiter) as reader:
            _check_width(str(file), len(next(reader, ())))
        try:
            head = pd.read_csv(file, header=None, nrows=1, **options)
        except pd.errors.EmptyDataError as error:
            raise UserError(f"{file} is empty: it should begin with a line of column names") from error
        have = [str(name) for name in head.iloc[0]]
        names = have if names is None else names
        _check_delimiter(file, names, have)
        check_columns(str(file), names, have)
        if repeated := [name for name in names if have.count(name) > 1]:
            raise UserError(f"{file} has several columns {', '.join(repeated)}")
        try:
            frame = pd.read_csv(file, na_values=[""], **options)
        except pd.errors.ParserError as error:
            raise UserError(_csv_fault(file, delimiter, len(have))) from error
        _check_quotes(file, delimiter)
        # pandas takes the first column as row names if rows have more values than the header.
        if not isinstance(frame.index, pd.RangeIndex):
            raise UserError(_csv_fault(file, delimiter, len(have)))
        places = [have.index(name) for name in names]
        columns = {
            name: pa.array(frame.iloc[:, place], pa.string(), from_pandas=True)
            for name, place in zip(names, places, strict=True)
        }
    return Table(pa.table(columns), lambda row: f"{file}, line {_csv_line(file, delimiter, row)}", {})


def _check_delimiter(file: Path, names: Sequence[str], have: Sequence[str]) -> None:
    """Raises UserError if semicolons, tabs or bars separate the columns instead of the expected character."""
    for other in ";\t|":
        parts = have[0].split(other)
        if len(have) == 1 < len(parts) and set(names) <= {have[0], *(name.strip('"') for name in parts)}:
            raise UserError(
                f"{file}: its columns are separated by {other!r}; save it with commas, or with tabs as .tsv"
            )


def _csv_rows(file: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields each row below the header, with the number of its first line. Values may span several lines.

    Empty lines are skipped, as pandas does.
    """
    with _csv_reader(file, delimiter) as reader:
        ended = rows = 0
        for fields in reader:
            if len(fields) > 1 or "".join(fields).strip():
                rows += 1
                if rows > 1:
                    yield ended + 1, fields
            ended = reader.line_num


def _check_quotes(file: Path, delimiter: str) -> None:
    """Raises UserError if text follows a closing quote.

    pandas adds it to the value. So a stray quote at the start of a value would make one value of all lines up
    to the next quote.
    """
    with _csv_reader(file, delimiter, strict=True) as reader:
        try:
            for _ in reader:
                pass
        except csv.Error as error:
            raise UserError(
                f"{file}, line {reader.line_num}: text follows a closing quote. Either this quote belongs to "
                "a text and should be doubled, or a quote in a line above is not closed"
            ) from error


@contextmanager
def _csv_reader(file: Path, delimiter: str, strict: bool = False) -> Iterator[Any]:
    """A context with a reader of the file's rows, which may have values of any length."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            yield csv.reader(stream, delimiter=delimiter, strict=strict)
    finally:
        csv.field_size_limit(limit)


def _csv_line(file: Path, delimiter: str, row: int) -> int:
    """Returns the line, counted from 1, on which a row begins. Rows are counted from 0."""
    line, _ = next(islice(_csv_rows(file, delimiter), row, None), (row + 2, []))
    return line


def _csv_fault(file: Path, delimiter: str, columns: int) -> str:
    """Returns the message for a broken CSV file. It names the first row with too many values.

    If there is no such row, a double quote is never closed, and the message names the line of the last row.
    """
    line = 1
    for line, fields in _csv_rows(file, delimiter):
        if len(fields) > columns:
            return (
                f"{file}, line {line}: the row has {len(fields)} values, and there are {columns} columns; "
                f"put texts with {delimiter!r} in double quotes"
            )
    return f"{file}, line {line}: a double quote is never closed"


def read_jsonl(file: Path, names: Sequence[str], texts: Sequence[str], answers: Sequence[str] = ()) -> Table:
    """Reads the columns `names` of a file with one JSON object per line.

    Columns in `texts` must hold strings. In the columns in `answers`, numbers and booleans are converted to
    texts. Raises UserError for a file that cannot be read, for a missing column, and for a column with values
    of different types.
    """
    import pyarrow as pa

    with _reading(file), file.open(encoding="utf-8-sig") as stream:
        rows = {number: _object(file, number, text) for number, text in enumerate(stream, 1) if text.strip()}
    lines = list(rows)
    if rows:
        check_columns(str(file), names, list(dict.fromkeys(name for row in rows.values() for name in row)))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows.values()]
        if name in answers:
            values = [as_answer(value) for value in values]
        expected = str if name in (*texts, *answers) else None
        _check_kinds(file, name, zip(lines, values, strict=True), expected)
        try:
            columns[name] = pa.array(values, pa.string() if expected else None)
        except (pa.ArrowException, OverflowError) as error:
            raise UserError(f"{file}: column '{name}' cannot be read: {error}") from error

    def line(row: int) -> str:
        return f"{file}, line {lines[row] if row < len(lines) else 1}"

    return Table(pa.table(columns), line, {})


def as_answer(value: Any) -> Any:
    """Converts a number or a boolean to a text, written as in JSON. Returns other values unchanged."""
    return json.dumps(value) if isinstance(value, (bool, int, float)) else value


def _object(file: Path, number: int, text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}, line {number}: it is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{file}, line {number}: it should be a JSON object, got {shown(row)}")
    return row


def _check_kinds(
    file: Path, name: str, values: Iterable[tuple[int, Any]], expected: type | None = None
) -> None:
    """Raises UserError for a value of another type than `expected`, and for a text with a lone surrogate.

    Without `expected`, all values must have the type of the first. None is accepted. The error names the
    line.
    """
    for line, value in values:
        if value is None:
            continue
        kind = float if isinstance(value, int) and not isinstance(value, bool) else type(value)
        expected = expected or kind
        if kind is not expected:
            raise UserError(
                f"{file}, line {line}: column '{name}' should hold {_KINDS[expected]}, got {shown(value)}"
            )
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if half := _HALF.search(text):
            raise UserError(
                f"{file}, line {line}: column '{name}' has half a character, \\u{ord(half[0]):04x}"
            )


def read_parquet(files: Sequence[Path], names: Sequence[str], where: str = "") -> Table:
    """Reads the columns `names` of parquet files and joins their rows, in the order of the files.

    `where` is the table's name in messages, by default that of the first file. Raises UserError for a file
    that cannot be read, and for a missing column.
    """
    import pyarrow as pa
    from pyarrow import parquet

    where = where or str(files[0])
    with _reading(files[0]):
        schema = parquet.read_schema(files[0])
        check_columns(where, names, schema.names)
        columns = pa.concat_tables([parquet.read_table(file, columns=list(names)) for file in files])
    return Table(columns, lambda row: f"{where}, row {row}", _class_names(schema))


def read_dataset(folder: Path, names: Sequence[str]) -> dict[str, Table]:
    """Reads the columns `names` of a folder written by `save_to_disk`. Returns a table for each split.

    A data set without splits has a single table, with the key "". Values are read from disk when they are
    used. Raises UserError for a folder that cannot be read, and for a missing column.
    """
    import datasets

    with _reading(folder):
        loaded = datasets.load_from_disk(str(folder))
        splits = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
        tables = {}
        for split, dataset in splits.items():
            where = f"{folder}, split {split}" if split else str(folder)
            check_columns(where, names, dataset.column_names)
            columns = dataset.select_columns(list(names)).with_format("arrow")[:]
            class_names = _class_names(dataset.features.arrow_schema)
            tables[split] = Table(columns, lambda row, where=where: f"{where}, row {row}", class_names)  # type: ignore[misc]
    return tables


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Returns the class names that `datasets` stored with a table, by column. Empty if it stored none."""
    import datasets

    if b"huggingface" not in (schema.metadata or {}):
        return {}
    features = datasets.Features.from_arrow_schema(schema)
    inner = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return {name: list(of.names) for name, of in inner.items() if isinstance(of, datasets.ClassLabel)}


def check_columns(where: str, names: Iterable[str], have: Sequence[str]) -> None:
    """Raises UserError for a column in `names` that is not in `have`. The error suggests the nearest name.

    Also raises UserError for more than `MOST_COLUMNS` columns.
    """
    _check_width(where, len(have))
    for name in names:
        if name not in have:
            near = did_you_mean(name, have)
            raise UserError(
                f"{where} has no column '{name}'{': ' + near if near else ''}; it has {', '.join(have[:40])}"
            )


def _check_width(where: str, columns: int) -> None:
    if columns > MOST_COLUMNS:
        raise UserError(f"{where} has {columns:,} columns; accepted are at most {MOST_COLUMNS:,}")


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """A context that converts errors from reading a file to UserError, and refuses spreadsheets."""
    from pyarrow import ArrowException

    if file.suffix.lower() in _SPREADSHEETS:
        raise UserError(f"{file} is a spreadsheet: export it as CSV in UTF-8, or as parquet")
    try:
        yield
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{file}, line {_undecodable_line(file)}: it is not in UTF-8") from error
    except (OSError, ValueError, KeyError, TypeError, ArrowException) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def _undecodable_line(file: Path) -> int:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type contains texts."""
    from pyarrow import types

    inner = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(inner) or types.is_large_string(inner))


def blank_row(column: Any) -> int | None:
    """Returns the first row of a column of texts that is null, empty or only spaces. None if no row is."""
    from pyarrow import compute, types

    texts = compute.cast(column, column.type.value_type) if types.is_dictionary(column.type) else column
    blank = compute.fill_null(compute.equal(compute.utf8_trim_whitespace(texts), ""), True)
    row: int = compute.index(blank, True).as_py()
    return None if row < 0 else row


def embedded_images(column: Any, where: Callable[[int], str]) -> Any:
    """Returns the encoded images of a column as an array of bytes. Raises UserError unless all are embedded.

    `where(row)` returns the name of a row in messages. The path that `datasets.Image` stores beside the bytes
    is never followed, since it could name any file on this machine or any web address.
    """
    from pyarrow import compute, types

    if types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = compute.struct_field(column, "bytes")
    if not (types.is_binary(column.type) or types.is_large_binary(column.type)):
        raise UserError(f"{where(0)} should hold embedded images, got values of type {column.type}")
    if column.null_count:
        row = compute.index(compute.is_null(column), True).as_py()
        raise UserError(f"{where(row)} has no embedded image; paths and addresses are not followed")
    return column
