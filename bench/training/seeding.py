"""Independent streams of random numbers. Each is derived from a trial's seed and the stream's name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

#: The names of the streams. A stream depends only on its name and the seed, so all methods get the same
#: numbers. `head_start` and `adapter_start` draw the initial values of head and adapter. `dropout` is the
#: backbone's own dropout. An adapter's dropout continues the stream `adapter_start`.
Stream = Literal["head_start", "adapter_start", "data_order", "augmentation", "dropout"]


def stream_seed(seed: int, stream: Stream) -> int:
    """Returns the seed of a stream, an integer of 63 bits."""
    digest = hashlib.sha256(f"tensorbench/{stream}/{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, stream: Stream) -> torch.Generator:
    """Returns a generator for a stream. It is on the CPU, so its numbers are the same for every device."""
    return torch.Generator().manual_seed(stream_seed(seed, stream))


@contextmanager
def lent(generator: torch.Generator) -> Iterator[None]:
    """A context in which `generator` replaces torch's global CPU generator. Other devices keep theirs."""
    kept = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.get_rng_state())
        torch.set_rng_state(kept)
