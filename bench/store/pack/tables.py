"""The parquet tables of a pack: one schema for those who write and those who read."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.wire.pack import CURVES, RUNS

_TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "map<string, string>": pa.map_(pa.string(), pa.string()),
    "map<string, double>": pa.map_(pa.string(), pa.float64()),
}

#: The most rows that a table has, and bytes when it is read. A run has some 10 to 1,000 points.
MOST_ROWS, MOST_BYTES = 50_000_000, 4 * 2**30


def schema(columns: dict[str, str]) -> pa.Schema:
    return pa.schema([(name, _TYPES[kind]) for name, kind in columns.items()])


RUNS_SCHEMA, CURVES_SCHEMA = schema(RUNS), schema(CURVES)


def written(table: pa.Table) -> bytes:
    """The same bytes for the same table and version of pyarrow."""
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", compression_level=9)
    return file.getvalue()


def check_size(content: bytes) -> pq.ParquetFile:
    """The file, not read yet. Raises ValueError for one that would be too large, or ArrowException."""
    file = pq.ParquetFile(io.BytesIO(content))
    found: Any = file.metadata
    size = sum(found.row_group(number).total_byte_size for number in range(found.num_row_groups))
    if found.num_rows > MOST_ROWS or size > MOST_BYTES:
        raise ValueError(f"{found.num_rows:,} rows of {size:,} bytes are more than a pack has")
    return file


def read(content: bytes, columns: pa.Schema) -> pa.Table:
    """Raises ValueError for a table with other columns, or one that is too large; or ArrowException."""
    file = check_size(content)
    if not file.schema_arrow.equals(columns):
        raise ValueError(f"its columns are not {', '.join(columns.names)}")
    return file.read()
