"""Makes packs of a few kilobytes that expand to gigabytes, each in a different way."""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tensorbench.store.pack import parquet

from ...packs import Files, changed

#: A text of 1 MiB that a table's dictionary stores once, and the number of groups of 64 rows that repeat it.
#: Expanded, they take 1.5 GiB.
LONG, GROUPS = "x" * 2**20, 24


def _file(*parts: tuple[pa.Table, int], **how: Any) -> bytes:
    """A parquet file of `parts`: tables, and how many times each is written, each time as a row group."""
    file = io.BytesIO()
    with pq.ParquetWriter(file, parts[0][0].schema, compression="zstd", compression_level=9, **how) as writer:
        for table, times in parts:
            for _ in range(times):
                writer.write_table(table)
    return file.getvalue()


def _runs(content: bytes, **columns: Any) -> tuple[pa.Table, pa.Table]:
    """The table of runs in a file, and a second table that repeats its last run with other `columns`."""
    table = pq.read_table(io.BytesIO(content))
    last = table.slice(len(table) - 1).to_pylist()[0]
    count = len(next(iter(columns.values())))
    every = {name: columns.get(name, [last[name]] * count) for name in table.column_names}
    return table, pa.table(every, parquet.RUNS)


def _repeated_tag(content: bytes) -> bytes:
    own, more = _runs(content, tags=[[("kind", "trial"), ("note", LONG)]] * 64)
    return _file((own, 1), (more, GROUPS))


def _empty_pages(content: bytes) -> bytes:
    own, more = _runs(content, tags=[[("kind", "trial"), ("note", LONG * 64)]])
    return _file((own, 1), (more, 24), use_dictionary=False)


def _millions_in_a_run(content: bytes) -> bytes:
    count = 16_000_000
    offsets = pa.array([0, count], "int32")
    tags = pa.MapArray.from_arrays(offsets, pa.repeat("k", count), pa.repeat("", count))
    own, more = _runs(content, tags=tags)
    return _file((own, 1), (more, 1))


def _repeated_key(_: bytes) -> bytes:
    points = {"run_id": ["a"] * 64, "key": [LONG] * 64, "step": range(64), "value": [0.0] * 64}
    return _file((pa.table(points, parquet.CURVES), GROUPS))


def _answers(column: pa.Array, groups: int = GROUPS) -> Callable[[bytes], bytes]:
    numbers = [0] * len(column)
    rows = pa.table({"example": numbers, "label": numbers, "prediction": numbers, "text": column})
    return lambda _: _file((rows, groups))


def _objects(content: bytes) -> bytes:
    """A plan with millions of objects. Random text keeps the compression ratio below that of a zip bomb."""
    plan = json.loads(content)
    many = ",".join(['{"a":1}'] * 5_000_000)
    plan["trials"][0]["method"]["x"] = [os.urandom(300_000).hex(), "here"]
    return json.dumps(plan).replace('"here"', many).encode()


def _padded(content: bytes) -> bytes:
    """A table of runs with 400 MiB before its footer, which states 2^61 runs."""
    file = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(content)), file)
    written = file.getvalue()
    begin = len(written) - 8 - int.from_bytes(written[-8:-4], "little")
    rows = pq.read_metadata(file).num_rows
    assert rows < 64
    # Thrift fields: the number of rows, and the list of row groups.
    stated = bytes([0x16, 2 * rows, 0x19])
    footer = written[begin:-8].replace(stated, b"\x16" + b"\x80" * 8 + b"\x40\x19", 1)
    padding = (os.urandom(2**16) + bytes(2**23)) * 50
    return written[:begin] + padding + footer + len(footer).to_bytes(4, "little") + b"PAR1"


#: Ways to inflate a file of a pack: the ending of the file's name, and the function that changes its content.
IN_FILES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "a tag that a dictionary repeats": ("runs.parquet", _repeated_tag),
    "pages that compress to nothing": ("runs.parquet", _empty_pages),
    "one run with millions of tags": ("runs.parquet", _millions_in_a_run),
    "a footer that states more runs than there are": ("runs.parquet", _padded),
    "a key that a dictionary repeats": ("curves.parquet", _repeated_key),
    "an answer that a dictionary repeats": ("predictions.parquet", _answers(pa.array([LONG] * 64))),
    "answers in binary": ("predictions.parquet", _answers(pa.array([LONG.encode()] * 64))),
    "lists of lists": ("predictions.parquet", _answers(pa.array([[[1.5] * 2**20]] * 8), 8)),
    "millions of objects in JSON": ("plan.json", _objects),
}

#: The name of one more way: a file in the pack expands beyond the size that the zip file states for it.
UNDERSTATED = "a file that unpacks to more than it states"


def hostile(pack: Path, target: Path, way: str) -> Path:
    """Changes a pack in the named way, makes its hashes valid again, and writes it to `target`."""
    if way == UNDERSTATED:
        return _understated(pack, target)
    ending, change = IN_FILES[way]

    def edit(content: Files) -> None:
        name = next(name for name in content if name.endswith(ending))
        content[name] = change(content[name])

    return changed(pack, target, edit)


def _understated(pack: Path, target: Path) -> Path:
    """Appends zeros to the plan, but states the plan's size without them."""
    plan = [b""]

    def edit(content: Files) -> None:
        name = next(name for name in content if name.endswith("plan.json"))
        plan[0] = content[name]

    changed(pack, target, edit)
    with zipfile.ZipFile(target) as file:
        content = {name: file.read(name) for name in file.namelist()}
    size, zeros = len(plan[0]), bytes(2**26)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for name, member in content.items():
            with file.open(name, "w") as stream:
                stream.write(member)
                for _ in range(16 if name.endswith("plan.json") else 0):
                    stream.write(zeros)
        for entry in file.infolist():
            if entry.filename.endswith("plan.json"):
                # The size that the zip directory states.
                entry.file_size, entry.CRC = size, zlib.crc32(plan[0])
    return target
