"""Independent streams of random numbers, by their names, out of one seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

#: All but the adapter's start depend on the seed alone, so methods of a seed share them. `dropout` is
#: of the backbone: an adapter's own has another stream, which begins where its start ends.
Stream = Literal["head_start", "adapter_start", "data_order", "augmentation", "dropout"]


def stream_seed(seed: int, stream: Stream) -> int:
    """The seed of a stream, in 63 bits."""
    digest = hashlib.sha256(f"tensorbench/{stream}/{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream_seeds(seed: int) -> dict[str, int]:
    """The seed of every stream, by its name."""
    return {stream: stream_seed(seed, stream) for stream in get_args(Stream)}


def generator(seed: int, stream: Stream) -> torch.Generator:
    """A CPU generator: its numbers are the same on every device."""
    return torch.Generator().manual_seed(stream_seed(seed, stream))


@contextmanager
def lent(generator: torch.Generator) -> Iterator[None]:
    """Inside, this generator takes the place of torch's global one of the CPU. Other devices keep theirs."""
    kept = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.get_rng_state())
        torch.set_rng_state(kept)
