"""Independent random streams, derived from one seed by name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

#: The streams. They depend on the seed alone, so all methods of a seed share them. Only the adapter's start
#: also depends on the method. `dropout` is the backbone's: an adapter's own dropout continues the stream of
#: the adapter's start.
Stream = Literal["head_start", "adapter_start", "data_order", "augmentation", "dropout"]


def stream_seed(seed: int, stream: Stream) -> int:
    """The 63-bit seed of a stream."""
    digest = hashlib.sha256(f"tensorbench/{stream}/{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream_seeds(seed: int) -> dict[str, int]:
    """The seed of every stream, by name."""
    return {stream: stream_seed(seed, stream) for stream in get_args(Stream)}


def generator(seed: int, stream: Stream) -> torch.Generator:
    """A CPU generator for a stream, with the same numbers whatever the device."""
    return torch.Generator().manual_seed(stream_seed(seed, stream))


@contextmanager
def lent(generator: torch.Generator) -> Iterator[None]:
    """Context in which `generator` replaces torch's global CPU generator. Other devices keep theirs."""
    kept = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.get_rng_state())
        torch.set_rng_state(kept)
