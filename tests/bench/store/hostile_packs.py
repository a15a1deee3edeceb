"""Makes packs of a few kilobytes that expand to gigabytes, each in a different way."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from tensorbench.records.pack_format import EXPERIMENT, NUMBERS, RUNS
from tensorbench.records.words import Artifact

from ...packs import Files, changed, edit_arrays, edit_json, edit_run, edit_runs, path_of


def _random(size: int) -> str:
    """Text that keeps the compression ratio below that of a zip bomb."""
    return os.urandom(size // 2).hex()


def _zeros(content: Files) -> None:
    content[path_of(content, RUNS)] += b" " * 2**30


def _objects(content: Files) -> None:
    plan = json.loads(content[path_of(content, "plan.json")])
    many = ",".join(['{"a":1}'] * 5_000_000)
    plan["trials"][0]["method"]["x"] = [_random(2**22), "here"]
    content[path_of(content, "plan.json")] = json.dumps(plan).replace('"here"', many).encode()


def _tags(content: Files) -> None:
    edit_run(lambda run: run["tags"].update(here=""))(content)
    runs, many = path_of(content, RUNS), b'"k": "",' * 2_000_000 + b'"k": ""'
    content[runs] = content[runs].replace(b'"here": ""', many)


def _long_tag(lines: list[dict[str, Any]]) -> None:
    lines[-1]["tags"] |= {"note": "x" * 2**23}


def _points(content: Files) -> None:
    """Millions of points with the longest key that is accepted."""
    count = 2**20

    def one(lines: list[dict[str, Any]]) -> None:
        lines[:] = [line | {"curves": {}} for line in lines]
        lines[-1]["curves"] = {"x" * 100: count}

    edit_runs(one)(content)
    zeros = {"step": np.zeros(count, np.int64), "value": np.zeros(count)}
    edit_arrays(lambda arrays: arrays.update(zeros))(content)


def _lines(content: Files) -> None:
    """A configuration of 8 GiB: a line of 4 MiB, 2,000 times."""
    edit_json(EXPERIMENT, lambda experiment: experiment.update(lines=["x" * 2**22]))(content)
    edit_runs(lambda lines: [line.update(config=2_000 if line is lines[-1] else 0) for line in lines])(
        content
    )
    edit_arrays(lambda arrays: arrays.update(config=np.zeros(2_000, np.uint32)))(content)


def _header(content: Files) -> None:
    """A header of arrays that states gigabytes which the file does not have."""
    header = b'{"config":{"dtype":"U8","shape":[4,4294967296],"data_offsets":[0,17179869184]}}'
    content[path_of(content, NUMBERS)] = len(header).to_bytes(8, "little") + header


def _entries(content: Files) -> None:
    """A header of arrays with hundreds of thousands of empty ones."""
    entries = {
        f"a{number}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for number in range(350_000)
    }
    header = json.dumps(entries).encode()
    content[path_of(content, NUMBERS)] = len(header).to_bytes(8, "little") + header


def _configurations(content: Files) -> None:
    """Runs whose configurations are one long line each, the same for all of them."""
    edit_json(EXPERIMENT, lambda experiment: experiment.update(lines=["x" * 2**20]))(content)

    def more(lines: list[dict[str, Any]]) -> None:
        lines[:] = [line | {"config": 0, "split": None, "curves": {}} for line in lines]
        last = lines[-1]
        lines += [last | {"run_id": f"{number:032x}", "config": 1} for number in range(2**13)]

    edit_runs(more)(content)
    none = {"step": np.zeros(0, np.int64), "value": np.zeros(0)}
    none |= {"prediction": np.zeros(0, np.uint16), "log_probability": np.zeros(0, np.uint32)}
    edit_arrays(lambda arrays: arrays.update(config=np.zeros(2**13, np.uint32), **none))(content)


def _answers(content: Files) -> None:
    """Predictions whose texts would take gigabytes, because each of them begins at the first byte."""
    count = 2**14
    text = {"text": np.zeros(2**20, np.uint8), "text_ends": np.tile([2**20, 0], count // 2)}
    numbers = {name: np.zeros(count, np.int64) for name in ("example", "label", "prediction")}
    file = save(numbers | text | {"logit": np.zeros((count, 0), np.float32)})
    content[path_of(content, Artifact.PREDICTIONS)] = file


#: Ways to inflate a pack, each a function that changes its files.
IN_FILES: dict[str, Callable[[Files], None]] = {
    "a file that compresses to nothing": _zeros,
    "millions of objects in JSON": _objects,
    "one run with millions of tags": _tags,
    "a tag of megabytes": edit_runs(_long_tag),
    "points with a long key": _points,
    "a configuration that repeats a line": _lines,
    "arrays that are stated and not there": _header,
    "a header with hundreds of thousands of entries": _entries,
    "runs that share a long configuration": _configurations,
    "texts that overlap": _answers,
}

#: The name of one more way: a file in the pack expands beyond the size that the zip file states for it.
UNDERSTATED = "a file that unpacks to more than it states"


def hostile(pack: Path, target: Path, way: str) -> Path:
    """Changes a pack in the named way, makes its hashes valid again, and writes it to `target`."""
    if way == UNDERSTATED:
        return _understated(pack, target)
    return changed(pack, target, IN_FILES[way])


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
