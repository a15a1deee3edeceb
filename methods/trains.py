"""Tensor trains (Oseledets 2011): their modes, cores and contraction, and a base class of methods."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from tensorbench.methods.backbone import Geometry
from tensorbench.methods.sizes import OneRank, Targeted


@cache
def balanced(size: int, modes: int) -> tuple[int, ...]:
    """Splits `size` into at most `modes` ascending factors with the smallest sum.

    For example, `balanced(768, 4)` is (4, 4, 6, 8). If several splits have the same sum, the split with the
    smaller largest factor wins. A prime size has one factor, itself.
    """
    return min(factorisations(size, modes), key=lambda factors: (sum(factors), factors[::-1]))


def factorisations(size: int, most: int, low: int = 2) -> Iterator[tuple[int, ...]]:
    """Yields every way to write `size` as a product of at most `most` ascending factors of at least `low`."""
    if most:
        yield (size,)
    if most > 1:
        for factor in range(low, math.isqrt(size) + 1):
            if not size % factor:
                for rest in factorisations(size // factor, most - 1, factor):
                    yield factor, *rest


def core_shapes(modes: Sequence[int], ranks: int | Sequence[int]) -> list[tuple[int, int, int]]:
    """Returns the shape (r₋, n, r₊) of every core. A single rank applies to all bonds."""
    inner = (ranks,) * (len(modes) - 1) if isinstance(ranks, int) else tuple(ranks)
    return list(zip((1, *inner), modes, (*inner, 1), strict=True))


def train_count(modes: Sequence[int], ranks: int | Sequence[int]) -> int:
    """Counts the parameters of a train, Σ r₋·n·r₊. A single rank applies to all bonds."""
    return sum(map(math.prod, core_shapes(modes, ranks)))


def bond_limits(modes: Sequence[int]) -> tuple[int, ...]:
    """Returns a rank for each bond, with which a train can represent every tensor with these modes.

    It is the product of the modes left or right of the bond, whichever is smaller.
    """
    return tuple(min(math.prod(modes[:i]), math.prod(modes[i:])) for i in range(1, len(modes)))


def train_limit(modes: Sequence[int]) -> int:
    """Returns the smallest common rank of all bonds with which a train can represent every tensor."""
    return max(bond_limits(modes), default=1)


def chain(cores: Sequence[Tensor]) -> Tensor:
    """Contracts neighbouring cores (…, r₋, n, r₊) to one tensor (…, first r₋, Π n, last r₊).

    The modes are flattened to one dimension, along which the index of the first mode changes slowest.
    """
    product = cores[0]
    for core in cores[1:]:
        longer = product.flatten(-3, -2) @ core.flatten(-2, -1)
        product = longer.unflatten(-1, core.shape[-2:]).unflatten(-3, product.shape[-3:-1]).flatten(-3, -2)
    return product


class Trains(nn.Module):
    """Tensor trains of one shape and rank, which are contracted together.

    `number` is the number of trains. The k-th cores of all trains are one parameter (number, r₋, n, r₊).
    """

    def __init__(self, number: int, modes: Sequence[int], rank: int) -> None:
        super().__init__()
        self.cores = nn.ParameterList(
            torch.zeros(number, *shape) for shape in core_shapes(tuple(modes), rank)
        )

    def matrices(self, rows: int) -> Tensor:
        """Returns each train's tensor as a matrix with `rows` rows: (number, rows, columns), row-major."""
        return chain(list(self.cores)).flatten(1).unflatten(1, (rows, -1))

    def draw_normal(self, variance: float, generator: torch.Generator) -> None:
        """Draws normal cores, such that the entries of each train's tensor have the variance `variance`."""
        for core in self.cores:
            std = variance ** (0.5 / len(self.cores)) / math.sqrt(core.shape[-1])
            nn.init.normal_(core, std=std, generator=generator)


def tt_svd(tensor: Tensor, modes: Sequence[int], rank: int) -> list[Tensor]:
    """Decomposes a tensor into the cores of a train by successive truncated SVDs.

    This is algorithm 1 of Oseledets 2011. Cores are padded with zeros if an unfolding has fewer than `rank`
    singular values.
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
    """A method in which each layer has its own tensor trains, of equal shapes in all layers.

    All inner ranks are `rank`.
    """

    @abstractmethod
    def trains(self, geometry: Geometry) -> list[tuple[int, ...]]:
        """Returns the mode sizes of each train in a layer.

        Raises UserError for a geometry that the method cannot adapt.
        """

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts L · Σ r₋·n·r₊, with the sum over all cores of the trains in a layer, and L layers."""
        return geometry.layers * sum(train_count(modes, rank) for modes in self.trains(geometry))

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Returns a rank with which each of the trains can represent every tensor of its shape."""
        return (max(map(train_limit, self.trains(geometry))),)
