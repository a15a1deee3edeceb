"""The parquet tables of a pack: one schema for those who write and those who read."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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

#: The most rows that a table has, and bytes when it is read. A run has some 10 to 1,000 points.
MOST_ROWS, MOST_BYTES = 50_000_000, 4 * 2**30


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
