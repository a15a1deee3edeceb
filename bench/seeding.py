"""One seed, independent named streams of random numbers."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

#: Head start and data order depend on the seed alone, so that the methods of a seed are paired.
Stream = Literal["head_start", "adapter_start", "data_order", "dropout"]


def stream_seed(seed: int, stream: Stream) -> int:
    digest = hashlib.sha256(f"tensorbench/{stream}/{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, stream: Stream) -> torch.Generator:
    """A CPU generator: its numbers are the same on every device."""
    return torch.Generator().manual_seed(stream_seed(seed, stream))
