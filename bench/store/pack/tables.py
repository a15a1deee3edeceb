"""The parquet tables of a pack: one schema for those who write and those who read, and how large they may be.

A few bytes of parquet can stand for gigabytes: a text that a dictionary holds once and millions of rows
repeat, pages that compress to nothing, lists of millions of values in a row. So what a table decodes to is
added up before it is decoded, and compared with what its rows may need.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.store.pack.pages import check_depth, measure

#: The columns. `run_id` is the id that the run had where it ran, `parent` that of the run that it is nested
#: under, or empty. Times are in milliseconds since the epoch.
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

#: Bytes that a pack may need beyond what its rows need.
SLACK = 64 * 2**20

#: The longest footer, in bytes: that of a table of 1,000 classes, three columns each, has 2 MiB. Read, it
#: takes forty times as much.
MOST_FOOTER = 4 * 2**20

#: A footer that is too short for columns nested so deep that pyarrow runs out of stack.
SMALL_FOOTER = 16 * 2**10

#: How many times smaller zip makes a large table, whose pages are compressed already: hardly at all.
MOST_ZIPPED = 8

#: Bytes that a value takes in a column, and as an object of Python in a list or a mapping.
IN_COLUMN, AS_OBJECT = 8, 150


@dataclass(frozen=True)
class Room:
    """How much a table may need in memory."""

    #: Bytes that a row may need, on average.
    row: int
    #: Bytes that a row has at least in the file: it holds no more rows than that, whatever it states.
    least: int = 1
    #: Bytes that each value takes.
    value: int = IN_COLUMN

    def of(self, rows: int, packed: int) -> int:
        """Bytes for these rows of a file that takes `packed` bytes in the pack."""
        return self.row * min(rows, packed // self.least)


#: A run has some 60 tags and measures, a few of them long texts.
OF_RUNS = Room(16 * 2**10, 32, AS_OBJECT)
OF_CURVES = Room(160)


def _of_predictions(columns: int) -> Room:
    """An answer that a language model wrote has some hundred characters."""
    return Room(24 * columns + 256)


def written(table: pa.Table) -> bytes:
    """The same bytes for the same table and version of pyarrow."""
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", compression_level=9)
    return file.getvalue()


def read(content: bytes, columns: pa.Schema, packed: int, slack: int) -> tuple[pa.Table, int]:
    """A table whose texts are dictionaries, and how many bytes it needs beyond what its rows may need.

    `packed` is how many bytes its file takes in the pack. Raises ValueError for a table with other columns,
    or one that needs more than its rows and the slack; or ArrowException.
    """
    metadata = _metadata(io.BytesIO(content), len(content))
    if not metadata.schema.to_arrow_schema().equals(columns):
        raise ValueError(f"its columns are not {', '.join(columns.names)}")
    room = OF_RUNS if columns is RUNS else OF_CURVES
    texts = [path for path, kind in _leaves(metadata) if kind == "BYTE_ARRAY"]
    return _read(content, metadata, texts, room, packed, slack)


def check_predictions(content: bytes, packed: int) -> None:
    """Raises ValueError for a table of anything but numbers and texts, or one that is too large; or
    ArrowException.
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
    """Raises ValueError for a file that is larger than the rows it states may need, or mostly padding that
    zip makes small; or ArrowException. `packed` is how many bytes it takes in the pack.
    """
    metadata = _metadata(stream, size)
    row = max(OF_RUNS.row, _of_predictions(metadata.num_columns).row)
    _refuse_larger(metadata, size, SLACK + min(row * metadata.num_rows, MOST_ZIPPED * packed))


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
    found = pq.read_metadata(stream)
    # Other writers may lay out their pages in ways that are not added up here.
    if not str(found.created_by).startswith("parquet-cpp-arrow"):
        raise ValueError("it was not written by pyarrow")
    return found


def _leaves(metadata: Any) -> Iterator[tuple[str, str]]:
    """The path and the stored type of each column of values."""
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
    """The columns of that name, or all, with dictionaries for texts, and what they need beyond their room."""
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
    """How long the texts are when each is written out."""
    if isinstance(values, pa.MapArray):
        return _text_bytes(values.keys) + _text_bytes(values.items)
    if not isinstance(values, pa.DictionaryArray):
        return 0
    lengths = pc.take(pc.binary_length(values.dictionary), values.indices)
    return pc.sum(lengths.cast(pa.int64())).as_py() or 0
