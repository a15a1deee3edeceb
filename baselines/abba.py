"""ABBA (arXiv 2505.14238): each update is the elementwise product of two low-rank matrices."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from tensorbench.methods.adapter import Adapter
from tensorbench.methods.backbone import Backbone, Geometry
from tensorbench.methods.errors import UserError
from tensorbench.methods.lowrank import Contracted, LowRankMethod, OwnPairs
from tensorbench.methods.singular import singular
from tensorbench.methods.sizes import AnyTargets, OneRank, Targeted
from tensorbench.methods.validation import Scale


class HadamardMethod(OneRank, Targeted, LowRankMethod):
    """A method whose update is (B₁·A₁) ⊙ (B₂·A₂) at every site, with A (rank, in) and B (out, rank).

    The update equals a low-rank pair whose rank is the square of `rank`. Each column of its up factor is the
    entrywise product of a column of B₁ and a column of B₂. Each row of its down factor is the entrywise
    product of a row of A₁ and a row of A₂. So no dense update is built.
    """

    #: Whether `scale` is divided by the rank.
    divided_by_rank: ClassVar[bool]

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts 2·rank·(in + out), summed over all sites."""
        return 2 * geometry.layers * rank * sum(map(sum, self.adapted(geometry).values()))

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Returns ⌈√n⌉, where n is the smaller side of the largest adapted weight.

        At this rank, every update can have full rank. If ⌈√n⌉ exceeds the smallest side of any adapted
        weight, returns this side: ABBA starts from `rank` singular values of each weight.
        """
        smallest = min(map(min, self.adapted(geometry).values()))
        return (min(smallest, math.isqrt(geometry.full_rank(self.projections) - 1) + 1),)


class HadamardPairs(OwnPairs):
    """The parameters `A1`, `A2` (layers, rank, in) and `B1`, `B2` (layers, out, rank) of each projection.

    All entries are zero. Each method then draws its own initial values.
    """

    def __init__(self, method: HadamardMethod, geometry: Geometry) -> None:
        super().__init__(geometry.sites(method.projections))
        rank = method.resolved_rank
        self.scale = method.scale / rank if method.divided_by_rank else method.scale
        self.A1, self.A2, self.B1, self.B2 = (nn.ParameterDict() for _ in range(4))
        for name, (out, in_) in method.adapted(geometry).items():
            for wide in (self.A1, self.A2):
                wide[name] = nn.Parameter(torch.zeros(geometry.layers, rank, in_))
            for tall in (self.B1, self.B2):
                tall[name] = nn.Parameter(torch.zeros(geometry.layers, out, rank))

    def contract(self) -> Contracted:
        downs = {name: _products(self.A1[name], self.A2[name]) for name in self.A1}
        ups = {name: _products(self.B1[name].mT * self.scale, self.B2[name].mT).mT for name in self.B1}
        return self.contracted(downs, ups)


def _products(first: Tensor, second: Tensor) -> Tensor:
    """Multiplies every row of `first` (layers, r, n) by every row of `second`, entrywise: (layers, r², n)."""
    return (first.unsqueeze(2) * second.unsqueeze(1)).flatten(1, 2)


class ABBA(HadamardMethod):
    """y = W·x + b + scale · ((B₁·A₁) ⊙ (B₂·A₂))·x.

    Start (reference code): B₁ = U·√Σ and A₁ = √Σ·Vᵀ from the largest singular values of W, A₂ uniform in
    ±√(6/in), B₂ zero. W itself is unchanged. The scale is √(α₁·α₂) of the reference code, and is not divided
    by a rank. Both products have the same rank, as in the reference code, which ignores a second rank and
    has no dropout.
    """

    name: ClassVar[str] = "abba"
    title: ClassVar[str] = "ABBA"
    divided_by_rank: ClassVar[bool] = False
    published_lr: ClassVar[float | None] = 1e-3

    targets: AnyTargets = "qkvo+mlp"
    #: The value of both α₁ and α₂ in the reference code, which uses rank 32.
    scale: Scale = 32.0

    @classmethod
    def listed(cls) -> tuple[Self, ...]:
        """Returns one method, which adapts all attention projections and no MLP.

        With the MLP, even rank 1 has more parameters than LoRA r=4 on query, key and value.
        """
        return (cls.model_validate({"targets": "qkvo"}),)

    def check(self, geometry: Geometry, projections: tuple[str, ...]) -> None:
        super().check(geometry, projections)
        limit = min(map(min, self.adapted(geometry).values()))
        if self.resolved_rank > limit:
            raise UserError(
                f"{self.label}: rank is {self.resolved_rank:,}, accepted is at most {limit:,}, the smallest "
                f"side of an adapted weight of {geometry}: it starts from that many singular values"
            )

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> HadamardPairs:
        pairs = HadamardPairs(self, geometry)
        for wide in pairs.A2.values():
            bound = math.sqrt(6 / wide.shape[-1])
            nn.init.uniform_(wide, -bound, bound, generator=generator)
        return pairs

    def put(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        adapter: Any = super().put(backbone, generator)
        pairs = adapter.parametrisation
        for site, base in adapter.bases.items():
            # The reference code does not oversample. Since it sets no seed, its results vary between runs.
            u, s, vh = singular(base.weight, self.resolved_rank)
            with torch.no_grad():
                pairs.B1[site.projection][site.layer].copy_(u * s.sqrt())
                pairs.A1[site.projection][site.layer].copy_(s.sqrt()[:, None] * vh)
        return adapter
