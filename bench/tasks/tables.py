"""Reads the tables and lists of images that a user or a hub provides. Never runs code from a file.

Every table can tell the line of a row, for messages.
"""

from __future__ import annotations

import csv
import json
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorbench.methods.errors import UserError, did_you_mean, first_few, shown
from tensorbench.tasks.description import SPLIT_WORDS, Description
from tensorbench.tasks.task import SplitName

if TYPE_CHECKING:
    # Imported late: the import is slow, and most plans read no table.
    import pyarrow as pa

_SPREADSHEETS = (".xlsx", ".xls", ".ods")

#: How files begin that are no text, and what a message says of them.
_NO_TEXTS = {b"PAR1": "is parquet: name it in `parquet`"} | dict.fromkeys(
    (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"), "is compressed: unpack it"
)

#: The largest accepted number of columns. An error about an unknown column compares it with all of them.
MOST_COLUMNS = 10_000

#: The largest accepted size of an image file, in bytes. An uncompressed image with as many pixels as PIL
#: accepts is smaller.
MOST_BYTES = 2**29

#: Half of a surrogate pair, which JSON can express and UTF-8 cannot.
_HALF = re.compile("[\ud800-\udfff]")

#: The names of JSON types in messages.
_KINDS = {str: "texts", bool: "true or false", list: "lists", dict: "objects", float: "numbers"}

#: How the names of image files end.
_IMAGE = r"\.(?i:bmp|gif|jpe?g|png|tiff?|webp)"
_IMAGE_NAME = re.compile(rf"[^.].*{_IMAGE}")

#: The column of labels in folders and lists of images.
LABEL = "label"


@dataclass(frozen=True)
class Table:
    """Selected columns of one file, or of one split of a data set."""

    columns: pa.Table
    #: Returns the name of a row (from 0) in messages, such as "reviews.csv, line 17".
    line: Callable[[int], str]
    #: The class names of each column that stores class names, in the order of their numbers.
    class_names: dict[str, list[str]] = field(default_factory=dict)
    #: The official split of all rows. None if they have none, or a column has it.
    split: SplitName | None = None
    #: The image file of each row. None for texts and embedded images.
    files: Sequence[Path] | None = None


def names_of(columns: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns the names of columns as a tuple, which is empty for None."""
    return (columns,) if isinstance(columns, str) else columns or ()


def read_tables(data: Description) -> list[Table]:
    """Reads the described data on this machine, one table for each file or split.

    Raises UserError for files that cannot be read, for missing columns, and for values of different types in
    a column. Errors about a row name its line, its row number or, in folders of images, its file.
    """
    source, kind = getattr(data, data.format), data.format
    if kind == "images":
        return _image_folders(data, source)
    fields = (data.text, data.image, data.label, data.group, data.split_by)
    names = list(dict.fromkeys(name for columns in fields for name in names_of(columns)))
    if kind == "dataset":
        return _read_dataset(data, source, names)
    tables = []
    for split, file in source.items() if isinstance(source, dict) else ((None, source),):
        if kind == "image_list":
            with _reading(file):
                table = _image_list(file, file.stat().st_size, file.stat().st_mtime_ns)
        elif kind == "parquet":
            table = read_parquet([file], names, str(file))
        else:
            table = read_csv(file, names) if kind == "csv" else _read_jsonl(file, names, data)
            if data.image is not None:
                check_texts(table, data.image)
                paths = table.columns[data.image].to_pylist()
                table = replace(table, files=_image_files(file.parent, paths, table.line))
        tables.append(replace(table, split=split))
    return tables


# --- texts with rows on lines ---


def read_csv(file: Path, names: Sequence[str] | None) -> Table:
    """Reads the columns `names` of a CSV file as texts. None reads all columns. An empty value is null.

    Raises UserError for a file that cannot be read, and for missing or repeated columns.
    """
    import pyarrow as pa

    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    csv.field_size_limit(2**31 - 1)
    lines = array("q")
    with _reading(file), file.open(encoding="utf-8-sig", newline="") as stream:
        rows = _csv_rows(file, csv.reader(stream, delimiter=delimiter, strict=True))
        if (first := next(rows, None)) is None:
            raise UserError(f"{file} is empty: it should begin with a line of column names")
        header = first[1]
        names = header if names is None else names
        for other in ";\t|":
            parts = header[0].split(other)
            if len(header) == 1 < len(parts) and {*names} <= {header[0], *(n.strip('"') for n in parts)}:
                raise UserError(
                    f"{file}: its columns are separated by {other!r}; save it with commas, or with tabs "
                    "as .tsv"
                )
        check_columns(str(file), names, header)
        if repeated := [name for name in names if header.count(name) > 1]:
            raise UserError(f"{file} has several columns {', '.join(repeated)}")
        columns: dict[str, list[str | None]] = {name: [] for name in names}
        places = [(header.index(name), values) for name, values in columns.items()]
        for line, fields in rows:
            if len(fields) > len(header):
                raise UserError(
                    f"{file}, line {line}: the row has {len(fields)} values, and there are {len(header)} "
                    f"columns; put texts with {delimiter!r} in double quotes"
                )
            lines.append(line)
            for place, values in places:
                values.append(fields[place] or None if place < len(fields) else None)
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    return Table(table, _line_of(file, lines))


def _csv_rows(file: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Yields each row with the number of its first line. Values may span several lines.

    Blank lines are skipped. Raises UserError for a text that follows a closing quote: a stray quote at the
    start of a value would make one value of all lines up to the next quote.
    """
    ended = 0
    try:
        for fields in reader:
            if fields and not (len(fields) == 1 and fields[0].isspace()):
                yield ended + 1, fields
            ended = reader.line_num
    except csv.Error as error:
        if "end of data" in str(error):
            raise UserError(f"{file}, line {ended + 1}: a double quote is never closed") from error
        raise UserError(
            f"{file}, line {reader.line_num}: text follows a closing quote. Either this quote belongs to "
            "a text and should be doubled, or a quote in a line above is not closed"
        ) from error


def _line_of(file: Path, lines: Sequence[int]) -> Callable[[int], str]:
    return lambda row: f"{file}, line {lines[row] if row < len(lines) else 1}"


def _read_jsonl(file: Path, names: Sequence[str], data: Description) -> Table:
    """Reads the columns `names` of a file with one JSON object per line.

    Columns of texts must hold strings. In a generation's answers, numbers and booleans are converted to
    texts. Raises UserError for a file that cannot be read, for a missing column, and for a column with values
    of different types.
    """
    import pyarrow as pa

    lines, rows = array("q"), list[dict[str, Any]]()
    with _reading(file), file.open(encoding="utf-8-sig") as stream:
        for number, text in enumerate(stream, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{file}, line {number}: it is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise UserError(f"{file}, line {number}: it should be a JSON object, got {shown(row)}")
            lines.append(number)
            rows.append(row)
    if rows:
        check_columns(str(file), names, list(dict.fromkeys(name for row in rows for name in row)))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        expected = str if name in names_of(data.text) else None
        if data.target == "generation" and name == data.label:
            values, expected = list(map(as_answer, values)), str
        _check_kinds(file, name, zip(lines, values, strict=True), expected)
        try:
            columns[name] = pa.array(values, pa.string() if expected else None)
        except (pa.ArrowException, OverflowError) as error:
            raise UserError(f"{file}: column '{name}' cannot be read: {error}") from error
    return Table(pa.table(columns), _line_of(file, lines))


def as_answer(value: Any) -> Any:
    """Converts a number or a boolean to a text, written as in JSON. Returns other values unchanged."""
    return json.dumps(value) if isinstance(value, (bool, int, float)) else value


def _check_kinds(file: Path, name: str, values: Iterable[tuple[int, Any]], expected: type | None) -> None:
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


# --- Arrow files ---


def read_parquet(files: Sequence[Path], names: Sequence[str], where: str) -> Table:
    """Reads the columns `names` of parquet files and joins their rows, in the order of the files.

    `where` is the table's name in messages. Raises UserError for a file that cannot be read, and for a
    missing column.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schemas: list[Any] = []
    parts: list[Any] = []
    for file in files:
        with _reading(file):
            schemas.append(parquet.read_schema(file))
            check_columns(str(file) if parts else where, names, schemas[-1].names)
            parts.append(_without_views(parquet.read_table(file, columns=list(names))))
    with _reading(files[0]):
        columns = pa.concat_tables(parts)
    return Table(columns, lambda row: f"{where}, row {row}", _class_names(schemas[0]))


def _without_views(table: pa.Table) -> pa.Table:
    """Converts columns of views, which hold texts or bytes in another layout, to plain ones."""
    import pyarrow as pa

    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    schema = pa.schema([column.with_type(plain.get(column.type, column.type)) for column in table.schema])
    return table if schema.equals(table.schema) else table.cast(schema)


def _read_dataset(data: Description, folder: Path, names: Sequence[str]) -> list[Table]:
    """Reads the columns `names` of a folder written by `save_to_disk`. Returns a table for each split.

    Values are read from disk when they are used. If the description lists splits, other splits are left out.
    Raises UserError for a folder that cannot be read, for a missing column, and for an unknown split.
    """
    import datasets

    with _reading(folder):
        loaded = datasets.load_from_disk(str(folder))
        tables = []
        for word, dataset in dict(
            loaded if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
        ).items():
            where = f"{folder}, split {word}" if word else str(folder)
            check_columns(where, names, dataset.column_names)
            split = data.official(word) if word else None
            if word and split is None:
                if data.splits is None:
                    raise UserError(
                        f"{folder}: its split '{word}' is none of {', '.join(SPLIT_WORDS)}; say which of "
                        f"ours each is, as in splits: {{{word}: train}}"
                    )
                continue
            columns = dataset.select_columns(list(names)).with_format("arrow")[:]
            class_names = _class_names(dataset.features.arrow_schema)
            tables.append(
                Table(columns, lambda row, where=where: f"{where}, row {row}", class_names, split)  # type: ignore[misc]
            )
    return tables


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Returns the class names that `datasets` stored with a table, by column. Empty if it stored none."""
    import datasets

    if b"huggingface" not in (schema.metadata or {}):
        return {}
    features = datasets.Features.from_arrow_schema(schema)
    inner = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return {name: list(of.names) for name, of in inner.items() if isinstance(of, datasets.ClassLabel)}


# --- image files ---


def _image_folders(data: Description, folder: Path) -> list[Table]:
    """Reads a folder with one folder of images per class, or with such folders for each official split.

    Raises UserError for a folder that cannot be read or is empty, for images beside the folders of classes,
    and for links that lead nowhere. If the description lists splits, at least one of them must have a folder.
    If it lists none, but some folders have the names of splits, any other folder raises UserError.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    below = _folders(folder)
    # A class may be called train as well: then its folder contains images, not folders.
    official = {path: data.official(path.name) for path in below if _folders(path)}
    homes: list[tuple[Path, SplitName | None]] = [(path, split) for path, split in official.items() if split]
    if data.splits is not None and not homes:
        raise UserError(f"{folder} has no folder {' or '.join(data.splits)} with a folder for each class")
    names = ", ".join(path.name for path, _ in homes)
    if homes and (bare := [path.name for path in below if path not in official and data.official(path.name)]):
        raise UserError(f"{folder}: {', '.join(bare)} beside {names} has no folder of images for each class")
    if data.splits is None and homes and (odd := [path.name for path in below if not official.get(path)]):
        raise UserError(
            f"{folder}: {', '.join(odd)} beside {names} is no split; "
            "take it away, or say which folders are splits, as in splits: {train: train, test: test}"
        )
    tables = []
    for home, split in homes or [(folder, None)]:
        files = [(file, of_class.name) for of_class in _folders(home) for file in _files(of_class)]
        if files:
            loose = [path.name for path in home.iterdir() if _IMAGE_NAME.fullmatch(path.name)]
            if loose := sorted(name for name in loose if not (home / name).is_dir()):
                raise UserError(
                    f"{home}: images beside the folders of classes have no class: {first_few(loose, 3)}; "
                    "move them into the folder of their class, or away"
                )
            line = lambda row, files=files: str(files[row][0])  # noqa: E731
            paths = [str(file.relative_to(folder)) for file, _ in files]
            tables.append(_labelled(folder, paths, [label for _, label in files], line, split))
    if not tables:
        raise UserError(f"{folder} has no folder of images for each class")
    return tables


def _folders(folder: Path) -> list[Path]:
    """Returns the folders in a folder, except hidden ones (leading dot).

    Raises UserError for a link that leads nowhere, since it may stand for a folder.
    """
    found = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    for path in found:
        if not path.exists():
            raise UserError(f"{path} is a link to {os.readlink(path)}, and there is no such file")
    return [path for path in found if path.is_dir()]


def _files(folder: Path) -> list[Path]:
    """Returns all files below a folder, except hidden files and files in hidden folders (leading dot).

    Raises UserError if there are no files, and for a link to a folder. Raises OSError for a folder that
    cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    files: list[Path] = []
    try:
        for place, folders, names in os.walk(folder, onerror=refuse):
            folders[:] = [name for name in folders if name[0] != "."]
            # Links to folders may form a circle.
            if links := [name for name in folders if Path(place, name).is_symlink()]:
                raise UserError(
                    f"{Path(place, links[0])} is a link to a folder, and such links are not followed; "
                    "put the folder itself there"
                )
            files += (Path(place, name) for name in names if name[0] != ".")
    except RecursionError as error:
        raise UserError(f"{folder} has folders in folders, too deep to read") from error
    if not files:
        raise UserError(f"{folder} has no image")
    return sorted(files)


#: A path, which may have spaces and commas if it ends as images do, and a label.
_IMAGE_AND_LABEL = re.compile(rf"(.+{_IMAGE}|.+?)[\s,]+(\S+)")


@lru_cache(maxsize=32)
def _image_list(file: Path, size: int, changed: int) -> Table:
    """Reads a list with an image's path and its label on each line. Raises UserError for an empty list.

    `size` and `changed` describe the file's state, so that a cached list is read again after a change.
    """
    names, labels, lines = [], [], array("q")
    with file.open(encoding="utf-8-sig") as stream:
        for number, text in enumerate(stream, 1):
            if not text.strip():
                continue
            if (match := _IMAGE_AND_LABEL.fullmatch(text.strip())) is None:
                raise UserError(
                    f"{file}, line {number}: it should hold the path of an image and its label, "
                    f"got {shown(text.strip())}"
                )
            names.append(match[1])
            labels.append(match[2])
            lines.append(number)
    if not names:
        raise UserError(f"{file} lists no images")
    return _labelled(file.parent, names, labels, _line_of(file, lines), None)


def _labelled(
    root: Path, names: Sequence[str], labels: list[str], line: Callable[[int], str], split: SplitName | None
) -> Table:
    import pyarrow as pa

    files = _image_files(root, names, line)
    return Table(pa.table({LABEL: labels}), line, split=split, files=files)


def _image_files(root: Path, names: Iterable[str], line: Callable[[int], str]) -> list[Path]:
    """Returns the image files with these paths relative to the folder `root`, one for each row.

    Raises UserError, beginning with the row's line, if a path is absolute, leads out of `root` or is not in
    UTF-8, if there is no such file, and if it has more than `MOST_BYTES` bytes.
    """
    resolved, files = root.resolve(), []
    for row, name in enumerate(names):
        try:
            name.encode()
            if Path(name).is_absolute():
                raise UserError(
                    f"{line(row)}: {shown(name)} is an absolute path; accepted are paths that begin at {root}"
                )
            path = (root / name).resolve()
            if not path.is_relative_to(resolved):
                raise UserError(f"{line(row)}: {shown(name)} leads out of {root}; images must lie below it")
            if not path.is_file():
                raise UserError(f"{line(row)}: there is no image {path}")
            if (size := path.stat().st_size) > MOST_BYTES:
                raise UserError(
                    f"{line(row)}: {shown(name)} has {size:,} bytes; accepted are at most {MOST_BYTES:,}"
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{line(row)}: {shown(name)} is no path: {error}") from error
        files.append(root / name)
    return files


# --- checks ---


def check_columns(where: str, names: Iterable[str], have: Sequence[str]) -> None:
    """Raises UserError for a column in `names` that is not in `have`. The error suggests the nearest name.

    Also raises UserError for more than `MOST_COLUMNS` columns.
    """
    if len(have) > MOST_COLUMNS:
        raise UserError(f"{where} has {len(have):,} columns; accepted are at most {MOST_COLUMNS:,}")
    for name in names:
        if name not in have:
            near = did_you_mean(name, have)
            raise UserError(
                f"{where} has no column '{name}'{': ' + near if near else ''}; it has {', '.join(have[:40])}"
            )


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
        with file.open("rb") as stream:
            begin = stream.read(8)
        for start, what in _NO_TEXTS.items():
            if begin.startswith(start):
                raise UserError(f"{file} {what}") from error
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


def check_texts(table: Table, name: str, *, blank: bool = False) -> None:
    """Raises UserError for a column that does not hold texts, and for a row without a text.

    A row lacks a text if its value is null. Unless `blank` is set, it also lacks one if the text is empty or
    has only spaces.
    """
    from pyarrow import compute, types

    column = table.columns[name]
    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)):
        raise UserError(f"{table.line(0)}: column '{name}' should hold texts, got values of type {kind}")
    missing = compute.is_null(column)
    if not (blank or types.is_null(kind)):
        trimmed = compute.utf8_trim_whitespace(compute.cast(column, kind))
        missing = compute.fill_null(compute.equal(trimmed, ""), True)
    if (row := compute.index(missing, True).as_py()) >= 0:
        raise UserError(f"{table.line(row)}: no value in column '{name}'")


def embedded_images(table: Table, name: str) -> Any:
    """Returns the encoded images of a column as an array of bytes. Raises UserError unless all are embedded.

    The path that `datasets.Image` stores beside the bytes is never followed, since it could name any file on
    this machine or any web address.
    """
    from pyarrow import compute, types

    column = table.columns[name]
    if types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = compute.struct_field(column, "bytes")
    if not (types.is_binary(column.type) or types.is_large_binary(column.type)):
        raise UserError(
            f"{table.line(0)}: column '{name}' should hold embedded images, got values of type {column.type}"
        )
    if (row := compute.index(compute.is_null(column), True).as_py()) >= 0:
        raise UserError(
            f"{table.line(row)}: no embedded image in column '{name}'; paths and addresses are not followed"
        )
    return column
