"""One seed, independent named streams of random numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

#: Head start, data order and augmentation depend on the seed alone, so that a seed's methods are paired.
Stream = Literal["head_start", "adapter_start", "data_order", "augmentation", "dropout"]


def stream_seed(seed: int, stream: Stream) -> int:
    digest = hashlib.sha256(f"tensorbench/{stream}/{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, stream: Stream) -> torch.Generator:
    """A CPU generator: its numbers are the same on every device."""
    return torch.Generator().manual_seed(stream_seed(seed, stream))


@contextmanager
def lent(generator: torch.Generator) -> Iterator[None]:
    """Inside, what draws from torch's global CPU generator draws from this one; devices' are not touched."""
    kept = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.get_rng_state())
        torch.set_rng_state(kept)
