"""Arrays of examples, and the safetensors files that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

#: Arrays that hold their examples end to end, and the arrays that say how long each one is.
END_TO_END = {"tokens": "lengths", "answer_bytes": "answer_sizes"}

#: Arrays of N examples, (N, ...), except those of `END_TO_END`, and `pad_id`, which is a scalar.
Arrays = dict[str, NDArray[Any]]


def joined(batches: list[Arrays]) -> Arrays:
    """The arrays of all batches, one after the other."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def taken(arrays: Arrays, positions: NDArray[np.int64]) -> Arrays:
    """The arrays of the examples at these positions, in their order."""
    return {
        name: values[_indices(arrays, name, positions)] if values.shape else values
        for name, values in arrays.items()
    }


def _indices(arrays: Arrays, name: str, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    if name not in END_TO_END:
        return positions
    lengths = arrays[END_TO_END[name]]
    starts, counts = (lengths.cumsum() - lengths)[positions], lengths[positions]
    # The start of each example, minus its offset in the result, plus a running index.
    offsets = np.repeat(starts - (counts.cumsum() - counts), counts)
    return offsets + np.arange(len(offsets))


def write(arrays: Arrays, file: Path) -> None:
    """Writes the arrays as safetensors."""
    # save_file would hide the system's error number, by which a full disk is recognised.
    file.write_bytes(save(arrays))
