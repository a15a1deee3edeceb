"""Arrays of many examples in files: collected batch by batch, and taken apart without all being in memory."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: What is stored of all examples end to end, and what says how much of it each has.
END_TO_END = {"tokens": "lengths", "answer_bytes": "answer_sizes"}

#: What is known of N examples: arrays (N, ...), but for those of `END_TO_END`, and for `pad_id`, which is ().
Arrays = dict[str, NDArray[Any]]

#: The names that safetensors has for types.
_TYPES = {
    "int64": "I64",
    "float64": "F64",
    "int32": "I32",
    "float32": "F32",
    "uint8": "U8",
    "bool": "BOOL",
}

#: How many examples are copied at once.
_AT_ONCE = 4096


class Collected:
    """Arrays that grow by a batch of examples at a time. What is end to end grows in files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: defaultdict[str, list[NDArray[Any]]] = defaultdict(list)
        self._types: dict[str, np.dtype[Any]] = {}

    def add(self, batch: Arrays) -> None:
        for name, values in batch.items():
            if name not in END_TO_END:
                self._parts[name].append(values)
                continue
            self._types[name] = values.dtype
            with self._file(name).open("ab") as file:
                file.write(values.tobytes())

    def arrays(self) -> Arrays:
        """All of them; those in files are read where they are looked at."""
        found = {name: np.concatenate(parts) for name, parts in self._parts.items()}
        for name, kind in self._types.items():
            file = self._file(name)
            empty = not file.stat().st_size
            found[name] = np.zeros(0, kind) if empty else np.memmap(file, kind, mode="r")
        return found

    def remove(self) -> None:
        """Removes the files. What `arrays` gave is of no more use then."""
        for name in self._types:
            self._file(name).unlink()

    def _file(self, name: str) -> Path:
        return self._folder / f".{name}"


def taken(arrays: Arrays, chosen: NDArray[np.int64]) -> Arrays:
    """The arrays of the chosen examples, in their order."""
    return {
        name: np.concatenate([np.zeros((0, *values.shape[1:]), values.dtype), *_parts(arrays, name, chosen)])
        if values.shape
        else values
        for name, values in arrays.items()
    }


def save(arrays: Arrays, chosen: NDArray[np.int64], file: Path) -> None:
    """Writes the chosen examples, in their order, as safetensors, a part after the other."""
    # The widest first, so that every one of them begins at a multiple of its type's width.
    names = sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        shape, kind = _shape(arrays, name, chosen), arrays[name].dtype
        begin, end = end, end + int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        header[name] = {"dtype": _TYPES[kind.name], "shape": shape, "data_offsets": [begin, end]}
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % 8)
    # Not by safetensors itself, which wants all of it in memory, and hides a full disk behind its own error.
    with file.open("wb") as stream:
        stream.write(len(told).to_bytes(8, "little") + told)
        for name in names:
            for part in _parts(arrays, name, chosen):
                stream.write(np.ascontiguousarray(part).tobytes())


def _shape(arrays: Arrays, name: str, chosen: NDArray[np.int64]) -> list[int]:
    values = arrays[name]
    if name in END_TO_END:
        return [int(arrays[END_TO_END[name]][chosen].sum())]
    return [len(chosen), *values.shape[1:]] if values.shape else []


def _parts(arrays: Arrays, name: str, chosen: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
    """One array of the chosen examples, in parts."""
    values = arrays[name]
    if not values.shape:
        yield values
        return
    sizes = arrays[END_TO_END[name]] if name in END_TO_END else None
    starts = None if sizes is None else np.cumsum(sizes) - sizes
    for first in range(0, len(chosen), _AT_ONCE):
        part = chosen[first : first + _AT_ONCE]
        if sizes is None or starts is None:
            yield values[part]
            continue
        counts = sizes[part]
        # Where each of them begins, less how much stands before it here, and then counted on.
        offsets = starts[part] - (np.cumsum(counts) - counts)
        yield values[np.repeat(offsets, counts) + np.arange(counts.sum())]
