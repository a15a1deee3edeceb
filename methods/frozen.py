"""Parts of an adapter that are not trained: random cores, singular vectors, a copy of the start."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class PartlyFrozen(nn.Module):
    """Trained parameters, and frozen tensors as buffers of the module itself.

    A stored adapter holds the persistent ones; the others `remake` makes from these. Buffers of submodules
    are none of it: tensorly-torch keeps weights of one in some.
    """

    def remake(self) -> None:
        """Makes the buffers that are not persistent, bit for bit."""

    def frozen(self) -> dict[str, Tensor]:
        """The frozen tensors by name, without the seeds of others."""
        return {name: tensor for name, tensor in self._own() if tensor.is_floating_point()}

    def kept(self) -> dict[str, Tensor]:
        """The persistent buffers by name."""
        persistent = self.state_dict().keys()
        return {name: tensor for name, tensor in self._own() if name in persistent}

    def draw_seed(self, generator: torch.Generator) -> None:
        """Registers a seed, which `remake` draws from by `seeded` or `draw`."""
        self.register_buffer("seed", torch.randint(2**62, (), generator=generator))

    def seeded(self) -> torch.Generator:
        """A generator of the CPU, at the beginning of the seed's stream: the same on every device."""
        return torch.Generator().manual_seed(int(self.get_buffer("seed")))

    @torch.no_grad()
    def draw(self, fill: Callable[..., Any]) -> None:
        """Fills the frozen tensors from the seed, one after another: `fill(tensor, generator=…)` as those of
        torch.nn.init do.
        """
        generator = self.seeded()
        for tensor in self.frozen().values():
            drawn = torch.empty(tensor.shape)
            fill(drawn, generator=generator)
            tensor.copy_(drawn)

    def begin_at(self, start: Iterable[Tensor], *, persistent: bool) -> nn.ParameterList:
        """Keeps tensors as the frozen start of parameters, which it returns. `remake` may fill them first."""
        for index, tensor in enumerate(start):
            self.register_buffer(f"start{index}", tensor, persistent=persistent)
        self.remake()
        return nn.ParameterList(tensor.clone() for tensor in self.frozen().values())

    def _own(self) -> Iterator[tuple[str, Tensor]]:
        return self.named_buffers(recurse=False)
