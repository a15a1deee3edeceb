"""Independent streams of random numbers, by their names, out of one seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

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


class Streams:
    """The torch streams, of the CPU and of the device, from which everything in one trial draws."""

    def __init__(self, device: torch.device) -> None:
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            torch.cuda.init()
            index = torch.cuda.current_device() if device.index is None else device.index
            self._generators.append(torch.cuda.default_generators[index])
        self._states = self.now()

    def now(self) -> list[Tensor]:
        """How torch's streams stand."""
        return [generator.get_state() for generator in self._generators]

    @contextmanager
    def lent(self, *, back: bool = False) -> Iterator[None]:
        """Inside, torch draws from these; with `back` they are afterwards as they were."""
        outer, before = self.now(), self._states
        self._become(self._states)
        try:
            yield
        finally:
            self._states = before if back else self.now()
            self._become(outer)

    def _become(self, states: Sequence[Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)
