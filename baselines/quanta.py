"""QuanTA (NeurIPS 2024, arXiv 2406.00132): updates of high rank from gates on pairs of axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations, count
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from tensorbench.methods.added import AddedAdapter, Addition
from tensorbench.methods.backbone import Backbone, Geometry
from tensorbench.methods.errors import UserError, too_small
from tensorbench.methods.sizes import StartKept, Targeted, check_ranks, nearest
from tensorbench.methods.trains import factorisations

#: The largest number of axes, and the largest prime factor of their product.
MOST_AXES, MOST_PRIME = 8, 7


class QuanTA(Targeted, StartKept):
    """y = W·x + b + T(x) - T₀(x), where T applies a full gate to every pair of the axes of x.

    x is reshaped to `axes`. If the product of the axes is not the size of x, x is first padded with zeros or
    truncated at its end, and so is the output. Pairs with the last axis come first.

    T₀ is the frozen initial T, so the initial update is exactly zero. T₀ is recomputed from a seed. The
    reference code instead subtracts T₀ from W; here W is unchanged. Start: every gate uniform with variance
    1/(n·m) for axes of sizes n and m. There is no scale and no dropout.
    """

    name: ClassVar[str] = "quanta"
    title: ClassVar[str] = "QuanTA"
    titled: ClassVar[frozenset[str]] = frozenset({"axes"})
    #: This tolerance is large, because the side of a weight has few factorisations into axes.
    fit_tolerance: ClassVar[float] = 0.25
    not_low_rank: ClassVar[str] = "QuanTA's update has a high rank"
    #: The learning rate in the reference code for DROP.
    published_lr: ClassVar[float | None] = 1e-4

    #: The sizes of the axes. A single size is the size of all axes, and there are as many axes as the largest
    #: side of a weight needs. None: a budget sets the axes.
    axes: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(None, min_length=1)

    @property
    def size(self) -> tuple[int, ...] | None:
        return self.axes

    @property
    def rank_names(self) -> tuple[str, ...]:
        return tuple(f"axis {index + 1}" for index in range(len(self.axes or (0,))))

    def with_size(self, ranks: Sequence[int]) -> Self:
        return self.model_copy(update={"axes": check_ranks(self.label, ranks)})

    def isorank(self, rank: int) -> Self:
        """Returns the same method with equal axes of size `rank`.

        The number of axes follows from the largest side of a weight (see `shape`).
        """
        return self.with_size((rank,))

    def shape(self, geometry: Geometry) -> tuple[int, ...]:
        """Returns the sizes of all axes.

        A single size is repeated until the product of the axes is at least the largest side of a weight.
        Raises UserError if `axes` is None, and for a single size that is not between 1 and that side.
        """
        if self.axes is None:
            raise UserError(f"{self.label}: axes are free; give them, or a budget")
        if len(self.axes) > 1:
            return self.axes
        (axis,), side = self.axes, self._largest(geometry)
        if not 1 < axis < side:
            raise UserError(
                f"{self.label}: axes of {axis} cannot make up {side}; accepted is 2 to {side - 1}"
            )
        return (axis,) * next(number for number in count(2) if axis**number >= side)

    def count(self, geometry: Geometry) -> int:
        """Counts Σ (n·m)², with the sum over all pairs of axes, of sizes n and m, at all sites."""
        sites = geometry.layers * len(self.adapted(geometry))
        return sites * sum((n * m) ** 2 for n, m in combinations(self.shape(geometry), 2))

    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        """Returns the same method with the axes whose count is nearest to the budget.

        The product of the axes is the largest side of a weight. If that side has a prime factor above 7, the
        product is the next larger number without such a factor (our rule). Raises UserError if there are no
        such axes, or if all of them exceed the budget.
        """
        # The prime factors of each size, in ascending order.
        primes = (
            max(factorisations(size, size.bit_length()), key=len) for size in count(self._largest(geometry))
        )
        padded = next(math.prod(factors) for factors in primes if factors[-1] <= MOST_PRIME)
        splits = (axes[::-1] for axes in factorisations(padded, MOST_AXES) if len(axes) > 1)
        choices = [self.with_size(axes) for axes in splits]
        if not choices:
            raise UserError(f"{self.label}: there is no size for a backbone of {geometry}")
        smallest = min(choice.count(geometry) for choice in choices)
        if smallest > budget:
            raise too_small(self.label, budget, smallest, "")
        return nearest(choices, lambda choice: choice.count(geometry), budget)

    def put(self, backbone: Backbone, generator: torch.Generator) -> AddedAdapter:
        axes = self.shape(backbone.geometry)
        return AddedAdapter(backbone, self, lambda base: _Circuit(axes, base.out_features, generator))

    def _largest(self, geometry: Geometry) -> int:
        return max(map(max, self.adapted(geometry).values()))


class _Circuit(Addition):
    def __init__(self, axes: tuple[int, ...], out: int, generator: torch.Generator) -> None:
        super().__init__()
        self.axes, self.out = axes, out
        #: The two axes of each gate, in ascending order.
        self.pairs = [(q, p) for p in reversed(range(len(axes))) for q in reversed(range(p))]
        self.draw_seed(generator)
        sides = [axes[q] * axes[p] for q, p in self.pairs]
        self.gates = self.begin_at((torch.empty(side, side) for side in sides), persistent=False)

    def remake(self) -> None:
        self.draw(_fill_gate)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self._apply_gates(x, self.gates) - self._apply_gates(x, self.frozen().values())

    def _apply_gates(self, x: Tensor, gates: Iterable[Tensor]) -> Tensor:
        z = F.pad(x, (0, math.prod(self.axes) - x.shape[-1])).reshape(-1, *self.axes)
        for (q, p), gate in zip(self.pairs, gates, strict=True):
            there = (q + 1, p + 1)
            ends = z.movedim(there, (-2, -1))
            z = F.linear(ends.flatten(-2), gate).unflatten(-1, ends.shape[-2:]).movedim((-2, -1), there)
        z = z.reshape(*x.shape[:-1], -1)
        return F.pad(z, (0, self.out - z.shape[-1]))


def _fill_gate(gate: Tensor, generator: torch.Generator) -> None:
    bound = math.sqrt(3 / len(gate))
    gate.uniform_(-bound, bound, generator=generator)
