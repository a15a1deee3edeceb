"""DoTA (arXiv 2412.20891): trains the leading part of each weight as a matrix product operator."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorbench.methods.added import AddedAdapter, Addition
from tensorbench.methods.backbone import Backbone, Geometry
from tensorbench.methods.sizes import StartKept
from tensorbench.methods.trains import TrainsOfSites, balanced, chain, tt_svd

#: The number of modes on each side of a weight.
MODES = 4


def modes_of(out: int, in_: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Splits output and input size into equally many modes: ascending factors with the smallest sum.

    Each size has at most four factors. If one size has fewer factors than the other, it gets ones in front,
    for example (1, 1, 1, 13). A prime size has one factor, itself. These rules are ours.
    """
    sides = [balanced(size, MODES) for size in (out, in_)]
    most = max(map(len, sides))
    first, second = ((1,) * (most - len(side)) + side for side in sides)
    return first, second


class DoTA(TrainsOfSites, StartKept):
    """y = (W - MPO(θ₀))·x + MPO(θ)·x + b; θ starts at θ₀, the cores of W's truncated decomposition.

    A matrix product operator (MPO) is a tensor train in which each core has an output mode and an input mode.
    All inner ranks are `rank`. θ₀ comes from successive SVDs. It is stored with a trained adapter, since SVDs
    differ between machines. Each forward builds the dense update of every site, which is slow.

    The accessible text of the paper describes only this construction. So modes, projections and ranks are our
    choice, and no result here reproduces the paper.
    """

    name: ClassVar[str] = "dota"
    title: ClassVar[str] = "DoTA"
    not_low_rank: ClassVar[str] = "DoTA's update has a high rank"
    fixed_start: ClassVar[str] = "DoTA starts from the weights"

    def trains(self, geometry: Geometry) -> list[tuple[int, ...]]:
        """Returns the mode sizes of each train in a layer: products of an output mode and an input mode."""
        sides = [modes_of(*shape) for shape in self.adapted(geometry).values()]
        return [tuple(m * n for m, n in zip(*pair, strict=True)) for pair in sides]

    def kept_count(self, geometry: Geometry) -> int:
        return self.count(geometry)

    def put(self, backbone: Backbone, generator: torch.Generator) -> AddedAdapter:
        return AddedAdapter(backbone, self, lambda base: _Operator(base.weight, self.resolved_rank))


class _Operator(Addition):
    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.sides = modes_of(*weight.shape)
        self.pairs = list(zip(*self.sides, strict=True))
        order = [axis for k in range(len(self.pairs)) for axis in (k, len(self.pairs) + k)]
        tensor = weight.detach().double().reshape(*self.sides[0], *self.sides[1]).permute(order)
        cores = tt_svd(tensor, [math.prod(pair) for pair in self.pairs], rank)
        self.cores = self.begin_at((core.to(torch.float32) for core in cores), persistent=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            update = self._matrix(list(self.cores)) - self._matrix(list(self.frozen().values()))
        return F.linear(x, update)

    def _matrix(self, cores: list[Tensor]) -> Tensor:
        """Returns the matrix (out, in) of a train whose modes each combine an output and an input mode."""
        number = len(self.pairs)
        digits = chain(cores).reshape([size for pair in self.pairs for size in pair])
        order = [*range(0, 2 * number, 2), *range(1, 2 * number, 2)]
        return digits.permute(order).reshape(math.prod(self.sides[0]), -1)
