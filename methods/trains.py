"""Tensor trains (Oseledets 2011): modes, cores, contraction, and base classes of methods."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from methods.backbone import Geometry
from methods.sizes import OneRank, Targeted


@cache
def balanced(size: int, modes: int) -> tuple[int, ...]:
    """The ascending factors of `size`, at most `modes` of them, with the smallest sum.

    Ties go to the list whose largest factor is smallest. A prime is its own only factor.
    """
    return min(factorisations(size, modes), key=lambda factors: (sum(factors), factors[::-1]))


def factorisations(size: int, most: int, low: int = 2) -> Iterator[tuple[int, ...]]:
    """Yields every ascending list of at most `most` factors of `size`, none below `low`."""
    if most:
        yield (size,)
    if most > 1:
        for factor in range(low, math.isqrt(size) + 1):
            if not size % factor:
                for rest in factorisations(size // factor, most - 1, factor):
                    yield factor, *rest


def core_shapes(modes: Sequence[int], ranks: int | Sequence[int]) -> list[tuple[int, int, int]]:
    """The shape (r₋, n, r₊) of every core. A single rank applies to all bonds."""
    inner = (ranks,) * (len(modes) - 1) if isinstance(ranks, int) else tuple(ranks)
    return list(zip((1, *inner), modes, (*inner, 1), strict=True))


def train_count(modes: Sequence[int], ranks: int | Sequence[int]) -> int:
    """The number of parameters Σ r₋·n·r₊ of a train. A single rank applies to all bonds."""
    return sum(map(math.prod, core_shapes(modes, ranks)))


def bond_limits(modes: Sequence[int]) -> tuple[int, ...]:
    """For each bond, the rank sufficient for every tensor: the product of the modes on its smaller side."""
    return tuple(min(math.prod(modes[:i]), math.prod(modes[i:])) for i in range(1, len(modes)))


def train_limit(modes: Sequence[int]) -> int:
    """The smallest rank for all bonds with which a train can represent every tensor with these modes."""
    return max(bond_limits(modes), default=1)


def chain(cores: Sequence[Tensor]) -> Tensor:
    """The product (…, first r₋, Π n, last r₊) of cores (…, r₋, n, r₊); the first mode is the slowest."""
    product = cores[0]
    for core in cores[1:]:
        longer = product.flatten(-3, -2) @ core.flatten(-2, -1)
        product = longer.unflatten(-1, core.shape[-2:]).unflatten(-3, product.shape[-3:-1]).flatten(-3, -2)
    return product


class Trains(nn.Module):
    """Several tensor trains (`number`) of one shape and rank.

    Core k of all trains is one parameter (number, r₋, n, r₊), so that they are contracted together.
    """

    def __init__(self, number: int, modes: Sequence[int], rank: int) -> None:
        super().__init__()
        self.cores = nn.ParameterList(
            torch.zeros(number, *shape) for shape in core_shapes(tuple(modes), rank)
        )

    def matrices(self, rows: int) -> Tensor:
        """Each train's tensor as a matrix (number, rows, columns), row-major."""
        return chain(list(self.cores)).flatten(1).unflatten(1, (rows, -1))

    @torch.no_grad()
    def draw_unit(self, generator: torch.Generator) -> None:
        """Draws uniform cores and scales each to norm one."""
        for core in self.cores:
            nn.init.uniform_(core, -1, 1, generator=generator)
            core.div_(core.flatten(1).norm(dim=1).view(-1, 1, 1, 1))

    @torch.no_grad()
    def decompose(self, tensor: Tensor) -> None:
        """Sets every train to the approximation of a tensor by `tt_svd`."""
        modes, rank = [core.shape[2] for core in self.cores], self.cores[0].shape[-1]
        for core, nearest in zip(self.cores, tt_svd(tensor, modes, rank), strict=True):
            core.copy_(nearest)

    def draw_normal(self, variance: float, generator: torch.Generator) -> None:
        """Draws normal cores, each with an equal share in the `variance` of the tensor's entries."""
        for core in self.cores:
            std = variance ** (0.5 / len(self.cores)) / math.sqrt(core.shape[-1])
            nn.init.normal_(core, std=std, generator=generator)


def tt_svd(tensor: Tensor, modes: Sequence[int], rank: int) -> list[Tensor]:
    """Decomposes a tensor into cores by successive truncated SVDs (Oseledets 2011, algorithm 1).

    Cores are padded with zeros if an unfolding has fewer than `rank` singular values.
    """
    cores, rest = [], tensor.reshape(1, -1)
    for left, size, right in core_shapes(modes, rank)[:-1]:
        u, s, vh = torch.linalg.svd(rest.reshape(left * size, -1), full_matrices=False)
        core, tail = u.new_zeros(left * size, right), vh.new_zeros(right, vh.shape[1])
        kept = min(right, len(s))
        core[:, :kept], tail[:kept] = u[:, :kept], s[:kept, None] * vh[:kept]
        cores.append(core.reshape(left, size, right))
        rest = tail
    return [*cores, rest.reshape(-1, modes[-1], 1)]


class TrainsOfSites(OneRank, Targeted):
    """A method whose updates are tensor trains of equal shapes in all layers. All inner ranks are `rank`."""

    @abstractmethod
    def trains(self, geometry: Geometry) -> list[tuple[int, ...]]:
        """The mode sizes of each train in a layer. Raises UserError for a geometry that cannot be adapted."""

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts L · Σ r₋·n·r₊ over the trains of a layer."""
        return geometry.layers * sum(train_count(modes, rank) for modes in self.trains(geometry))

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """The largest rank that any of the trains needs to represent every tensor of its shape."""
        return (max(map(train_limit, self.trains(geometry))),)
