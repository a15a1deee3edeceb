"""Arrays of examples, and their safetensors files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

#: The names of arrays that hold all examples end to end, each with the name of the array of their lengths.
END_TO_END = {"tokens": "lengths", "answer_bytes": "answer_sizes"}

#: Arrays of N examples, by name. Shapes are (N, ...), except for those in `END_TO_END` and the scalar
#: `pad_id`.
Arrays = dict[str, NDArray[Any]]


def joined(batches: list[Arrays]) -> Arrays:
    """Concatenates the arrays of all batches."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def taken(arrays: Arrays, positions: NDArray[np.int64]) -> Arrays:
    """Returns the arrays of the examples at these positions, in this order."""
    return {
        name: values[_indices(arrays, name, positions)] if values.shape else values
        for name, values in arrays.items()
    }


def _indices(arrays: Arrays, name: str, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    if name not in END_TO_END:
        return positions
    lengths = arrays[END_TO_END[name]]
    starts, counts = (lengths.cumsum() - lengths)[positions], lengths[positions]
    # A running index, plus each example's start, minus its offset in the result.
    offsets = np.repeat(starts - (counts.cumsum() - counts), counts)
    return offsets + np.arange(len(offsets))


def write(arrays: Arrays, file: Path) -> None:
    """Writes the arrays to a safetensors file."""
    # save_file would hide the system's error number, which identifies a full disk.
    file.write_bytes(save(arrays))
