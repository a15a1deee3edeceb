"""Writes and reads the parquet tables of a pack, with one schema for each table and limits on its size.

A few bytes of parquet can expand to gigabytes: by a dictionary's text that is repeated in millions of rows,
by pages of zeros, or by rows with lists of millions of values. Each row is allowed a certain amount of
memory. So before any page is decoded, the sizes in the headers of all pages are added up and compared with
the allowance for the rows. A page header is a struct of Thrift's compact protocol (parquet-format's
`parquet.thrift`, Thrift's `thrift-compact-protocol.md`).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

#: The accepted encodings: PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY and BYTE_STREAM_SPLIT. Except with
#: dictionaries, decoded values are no larger than their page. DELTA_BYTE_ARRAY is not accepted, because it
#: can repeat a long text in a few bits.
ENCODINGS = {0, 2, 3, 8, 9}

#: Page types.
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3

#: Thrift's field types.
_STOP, _TRUE, _FALSE, _BYTE, _I32, _DOUBLE, _BINARY, _LIST, _STRUCT = 0, 1, 2, 3, 5, 7, 8, 9, 12
_INTEGERS = {4, 5, 6}

#: The deepest accepted nesting of structs and columns. Page headers have three levels, footers have nine, and
#: columns have three.
_DEEPEST = 12

#: Thrift's numbers of two fields: the list of columns in a footer, and the number of children of a column.
_SCHEMA, _CHILDREN = 2, 5


@dataclass(frozen=True)
class Decoded:
    """The size of a file's pages after decoding, but before values are looked up in dictionaries."""

    #: The number of values in all columns. Nulls and empty lists count as values.
    values: int
    #: The uncompressed bytes of all pages.
    bytes: int


def measure(content: bytes, metadata: pq.FileMetaData) -> Decoded:
    """Adds up the bytes and values in the pages of all columns, as the page headers state them.

    Raises ValueError if parts of columns overlap or lie outside the file, if an encoding is not in
    `ENCODINGS`, or if a page header cannot be read.
    """
    values = size = encoded = 0
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(number)
            start, length = _range(chunk)
            encoded += length
            if start < 0 or length < 0 or start + length > len(content) or encoded > len(content):
                raise ValueError(f"column {chunk.path_in_schema} lies outside the file, or over another")
            of_chunk = _measure_chunk(content, start, start + length)
            values, size = values + of_chunk.values, size + of_chunk.bytes
    return Decoded(values, size)


def check_depth(footer: bytes) -> None:
    """Raises ValueError if columns are nested so deep that pyarrow could crash."""
    left: list[int] = []
    for column in _Reader(footer, 0, len(footer)).lists_of(_SCHEMA):
        while left and not left[-1]:
            left.pop()
        if left:
            left[-1] -= 1
        if column.get(_CHILDREN, 0) > 0:
            left.append(column[_CHILDREN])
        if len(left) > _DEEPEST:
            raise ValueError("its columns are nested too deep")


def _range(chunk: Any) -> tuple[int, int]:
    """The first byte and the length of a column chunk, as pyarrow computes them."""
    start = chunk.data_page_offset
    dictionary = chunk.dictionary_page_offset if chunk.has_dictionary_page else None
    return (dictionary if dictionary and dictionary < start else start), chunk.total_compressed_size


def _measure_chunk(content: bytes, place: int, end: int) -> Decoded:
    values = size = 0
    while place < end:
        header, place = _Reader(content, place, end).struct()
        try:
            kind, decoded, encoded = header[1], header[2], header[3]
            page = header[{_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}[kind]]
            count, encoding = page[1], page[4 if kind == _DATA_V2 else 2]
        except (KeyError, TypeError) as error:
            raise ValueError("a page has no header of its kind") from error
        if min(decoded, encoded, count) < 0 or encoded > end - place:
            raise ValueError("a page is cut, or of negative size")
        if encoding not in ENCODINGS:
            raise ValueError(f"a page has encoding {encoding}, which no writer of packs uses")
        values, size, place = values + count, size + decoded, place + encoded
    return Decoded(values, size)


class _Reader:
    """Reads a struct in Thrift's compact protocol: its 32-bit integers and nested structs, by field number.

    If a field number repeats, the last field counts, as in pyarrow. Raises ValueError if the struct is
    incomplete or nested too deep.
    """

    def __init__(self, content: bytes, place: int, end: int) -> None:
        self._content, self._place, self._end = content, place, end

    def struct(self, depth: int = 0) -> tuple[dict[int, Any], int]:
        """Returns the fields of a struct by number, and the position after the struct."""
        if depth > _DEEPEST:
            raise ValueError("a header is nested too deep")
        fields: dict[int, Any] = {}
        for number, kind in self._fields():
            if kind == _I32:
                fields[number] = self._integer()
            elif kind == _STRUCT:
                fields[number], _ = self.struct(depth + 1)
            else:
                self._skip(kind, depth)
        return fields, self._place

    def _fields(self) -> Iterator[tuple[int, int]]:
        """Yields the number and type of each field of a struct.

        The caller must read or skip a field's value before it takes the next field.
        """
        number = 0
        while (head := self._byte()) & 15 != _STOP:
            kind, step = head & 15, head >> 4
            number = number + step if step else self._integer()
            if not 0 < number < 2**15:
                raise ValueError("a header has a field that no struct has")
            yield number, kind

    def lists_of(self, field: int) -> Iterator[dict[int, Any]]:
        """Yields the structs in the list whose field number is `field`.

        If several fields have this number, the structs of all their lists are yielded.
        """
        for number, kind in self._fields():
            if (number, kind) != (field, _LIST):
                self._skip(kind, 0)
                continue
            inner, count = self._list()
            for _ in range(count):
                if inner == _STRUCT:
                    yield self.struct(1)[0]
                else:
                    self._skip_item(inner, 0)

    def _list(self) -> tuple[int, int]:
        """Reads the type and number of a list's items."""
        head = self._byte()
        return head & 15, head >> 4 if head >> 4 < 15 else self._varint()

    def _skip_item(self, kind: int, depth: int) -> None:
        """Skips an item of a list. In a list a boolean takes a byte; as a field it takes none."""
        if kind in (_TRUE, _FALSE):
            self._advance(1)
        else:
            self._skip(kind, depth)

    def _skip(self, kind: int, depth: int) -> None:
        if kind in (_TRUE, _FALSE):
            return
        if kind == _STRUCT:
            self.struct(depth + 1)
        elif kind in _INTEGERS:
            self._integer()
        elif kind in (_BYTE, _DOUBLE, _BINARY):
            self._advance({_BYTE: 1, _DOUBLE: 8}.get(kind) or self._varint())
        elif kind == _LIST and depth <= _DEEPEST:
            inner, count = self._list()
            for _ in range(count):
                self._skip_item(inner, depth + 1)
        else:
            # Page headers and footers contain no sets or maps.
            raise ValueError("a header has a field of an unknown type")

    def _byte(self) -> int:
        self._advance(1)
        return self._content[self._place - 1]

    def _advance(self, count: int) -> None:
        if count > self._end - self._place:
            raise ValueError("a header is incomplete")
        self._place += count

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            if (shift := shift + 7) > 63:
                raise ValueError("a header has a number that is too long")
        return value | byte << shift

    def _integer(self) -> int:
        """Reads a zigzag varint."""
        value = self._varint()
        return value >> 1 ^ -(value & 1)


#: The columns of the tables of runs and curves. `run_id` is the run's `Record.origin`. `parent` is the
#: `Record.origin` of the run in which the run is nested, or empty if it is not nested. Times are in
#: milliseconds since the epoch.
RUNS = pa.schema(
    {
        "run_id": pa.string(),
        "parent": pa.string(),
        "status": pa.string(),
        "started": pa.int64(),
        "ended": pa.int64(),
        "tags": pa.map_(pa.string(), pa.string()),
        "metrics": pa.map_(pa.string(), pa.float64()),
    }
)
CURVES = pa.schema({"run_id": pa.string(), "key": pa.string(), "step": pa.int64(), "value": pa.float64()})

#: The lines of each trial's `config.json`. Trials share most of them.
CONFIGS = pa.schema({"run_id": pa.string(), "lines": pa.list_(pa.string())})
#: The number of classes of each split, and the ids and classes of its examples.
SPLITS = pa.schema({"classes": pa.int32(), "example": pa.list_(pa.int64()), "label": pa.list_(pa.int32())})
#: Each trial's predictions for the examples of a split: the predicted classes, and the log-probabilities of
#: the labels in thousandths of a nat (`tensorbench.records.predictions.Compact`). `split` is the number of
#: the split's row in the table of splits, from 0.
PREDICTIONS = pa.schema(
    {
        "run_id": pa.string(),
        "split": pa.int32(),
        "prediction": pa.list_(pa.int16()),
        "log_probability_thousandths": pa.list_(pa.int32()),
    }
)

#: The encodings of each table, as arguments for pyarrow. Numbers that hardly repeat are stored byte by byte:
#: first all first bytes, then all second bytes, and so on. Other columns have dictionaries.
HOW: dict[pa.Schema, dict[str, Any]] = {
    CURVES: {
        "use_dictionary": ["run_id", "key", "step"],
        "column_encoding": {"value": "BYTE_STREAM_SPLIT"},
    },
    CONFIGS: {"dictionary_pagesize_limit": 2**24},
    SPLITS: {"use_dictionary": ["classes", "label.list.element"]},
    PREDICTIONS: {
        "use_dictionary": ["run_id", "split", "prediction.list.element"],
        "column_encoding": {"log_probability_thousandths.list.element": "BYTE_STREAM_SPLIT"},
    },
}

#: The bytes that a pack's tables may need beyond the allowance for their rows.
SLACK = 64 * 2**20

#: The longest accepted footer, in bytes. A table with three columns for each of 1,000 classes has 2 MiB of
#: footer. In memory a footer takes forty times as much.
MOST_FOOTER = 4 * 2**20

#: A footer of up to this many bytes cannot nest columns deep enough to overflow pyarrow's stack.
SMALL_FOOTER = 16 * 2**10

#: The largest factor by which zip compresses a large table, whose pages are already compressed.
MOST_ZIPPED = 8

#: The bytes that a value takes in a column, and as a Python object in a list or a mapping.
IN_COLUMN, AS_OBJECT = 8, 150


@dataclass(frozen=True)
class Room:
    """The memory that a table is allowed, by its number of rows and the size of its file."""

    #: The bytes that a row may need on average.
    row: int
    #: The fewest compressed bytes that a row can take. If a file states more rows than its size allows, the
    #: additional rows add nothing to the allowance.
    least: int = 1
    #: The bytes that each value takes in memory.
    value: int = IN_COLUMN
    #: The bytes that may be needed in addition for each compressed byte of the file.
    byte: int = 0

    def of(self, rows: int, packed: int) -> int:
        """Returns the bytes that a table may need with this many rows and `packed` compressed bytes."""
        return self.row * min(rows, packed // self.least) + self.byte * packed


#: The allowance of each table. A run has some 60 tags and measures, a few of them long texts. A configuration
#: has some 300 lines. An example of a split or a prediction has 1 to 2 bytes in the file and 20 in memory.
ROOMS = {
    RUNS: Room(16 * 2**10, 32, AS_OBJECT),
    CURVES: Room(160),
    CONFIGS: Room(4 * 2**10, 8),
    SPLITS: Room(256, byte=32),
    PREDICTIONS: Room(256, byte=32),
}


def _of_predictions(columns: int) -> Room:
    """The allowance for predictions. A language model's answer has about a hundred characters."""
    return Room(24 * columns + 256)


def written(table: pa.Table) -> bytes:
    """Returns the content of a parquet file with this table.

    The same table gives the same bytes if the version of pyarrow is the same.
    """
    file, table = io.BytesIO(), table.replace_schema_metadata()
    how = HOW.get(table.schema, {})
    with pq.ParquetWriter(file, table.schema, compression="zstd", compression_level=9, **how) as writer:
        # The pages of a row group without rows could not be added up.
        if len(table):
            writer.write_table(table)
    return file.getvalue()


def read(content: bytes, columns: pa.Schema, packed: int, slack: int) -> tuple[pa.Table, int]:
    """Reads a table. Also returns how many bytes it needs beyond the allowance for its rows.

    Columns of text become Arrow's dictionaries. `packed` is the file's compressed size. Raises ValueError if
    the table is malformed, has other columns, or exceeds its allowance by more than `slack` bytes. Raises
    ArrowException if pyarrow cannot read it.
    """
    metadata = _metadata(io.BytesIO(content), len(content))
    if not metadata.schema.to_arrow_schema().equals(columns):
        raise ValueError(f"its columns are not {', '.join(columns.names)}")
    texts = [path for path, kind in _leaves(metadata) if kind == "BYTE_ARRAY"]
    return _read(content, metadata, texts, ROOMS[columns], packed, slack)


def check_predictions(content: bytes, packed: int) -> None:
    """Raises ValueError if a table of predictions is malformed, too large, or has unexpected columns.

    Expected are columns of numbers and of texts. `packed` is the file's compressed size. Raises
    ArrowException if pyarrow cannot read the table.
    """
    metadata = _metadata(io.BytesIO(content), len(content))
    texts = []
    for column in metadata.schema.to_arrow_schema():
        kind = column.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            texts.append(column.name)
        elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise ValueError(f"column '{column.name:.80}' is of type {kind!s:.80}, not of numbers or texts")
    _read(content, metadata, texts, _of_predictions(metadata.num_columns), packed, SLACK, columns=texts)


def check_stated(stream: IO[bytes], size: int, packed: int) -> None:
    """Raises ValueError if a file is too large for the number of rows that its metadata state.

    Also raises ValueError if the metadata are malformed, or if zip compresses the file so well that most of
    it must be padding. `packed` is the file's compressed size. Raises ArrowException if pyarrow cannot read
    the metadata.
    """
    metadata = _metadata(stream, size)
    row = max(ROOMS[RUNS].row, _of_predictions(metadata.num_columns).row)
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    # A row with lists has several values.
    rows = sum(
        max(group.column(number).num_values for number in range(group.num_columns)) for group in groups
    )
    _refuse_larger(metadata, size, SLACK + min(row * rows, MOST_ZIPPED * packed))


def _metadata(stream: IO[bytes], size: int) -> Any:
    stream.seek(max(size - 8, 0))
    footer = int.from_bytes(stream.read(4), "little")
    if footer > min(MOST_FOOTER, size - 8):
        raise ValueError(
            f"its footer states {footer:,} bytes, more than {MOST_FOOTER:,} or than the file has"
        )
    if footer > SMALL_FOOTER:
        stream.seek(size - 8 - footer)
        check_depth(stream.read(footer))
    stream.seek(0)
    metadata = pq.read_metadata(stream)
    # Other writers may arrange pages in ways that `measure` does not add up.
    if not str(metadata.created_by).startswith("parquet-cpp-arrow"):
        raise ValueError("it was not written by pyarrow")
    return metadata


def _leaves(metadata: Any) -> Iterator[tuple[str, str]]:
    for number in range(metadata.num_columns):
        column = metadata.schema.column(number)
        yield column.path, column.physical_type


def _read(
    content: bytes,
    metadata: Any,
    texts: Sequence[str],
    room: Room,
    packed: int,
    slack: int,
    columns: Sequence[str] | None = None,
) -> tuple[pa.Table, int]:
    """Reads columns, and returns with them how many bytes they need beyond the allowance.

    The columns named in `texts` become Arrow's dictionaries.
    """
    allowed, pages = room.of(metadata.num_rows, packed), measure(content, metadata)
    needed = pages.bytes + room.value * pages.values
    _refuse_larger(metadata, needed, allowed + slack)
    file = pq.ParquetFile(io.BytesIO(content), read_dictionary=list(texts), metadata=metadata)
    table = file.read(columns)
    needed += sum(_text_bytes(chunk) for column in table.columns for chunk in column.chunks)
    _refuse_larger(metadata, needed, allowed + slack)
    return table, max(needed - allowed, 0)


def _refuse_larger(metadata: Any, needed: int, allowed: int) -> None:
    if needed > allowed:
        raise ValueError(
            f"{metadata.num_rows:,} rows that need {needed:,} bytes, more than the {allowed:,} that a "
            "pack has for so many"
        )


def _text_bytes(values: pa.Array) -> int:
    """The bytes of a column's texts if each text were stored in full, not as an index of a dictionary.

    Numbers and texts in lists count as 0.
    """
    if isinstance(values, pa.MapArray):
        return _text_bytes(values.keys) + _text_bytes(values.items)
    if not isinstance(values, pa.DictionaryArray):
        return 0
    lengths = pc.take(pc.binary_length(values.dictionary), values.indices)
    return pc.sum(lengths.cast(pa.int64())).as_py() or 0
