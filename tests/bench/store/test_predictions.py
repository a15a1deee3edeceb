"""Stored predictions are read by their columns alone."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.wire.predictions import frame_of


@pytest.mark.parametrize(
    "notes",
    [
        b"[" * 100_000,
        b'{"index_columns": 5, "columns": [], "column_indexes": []}',
        b'{"index_columns": ["label"], "columns": [5], "column_indexes": [5]}',
    ],
    ids=["deep", "index", "columns"],
)
def test_notes_for_pandas_are_passed_over(notes: bytes) -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"label": [1, 2]}).replace_schema_metadata({b"pandas": notes}), file)
    assert frame_of(file.getvalue()).to_dict("list") == {"label": [1, 2]}
