"""FLoRA (arXiv 2405.14739) for linear layers: each update has factors for both sides and a core between."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import nn

from tensorbench.methods.backbone import Geometry
from tensorbench.methods.lowrank import Contracted, LowRankMethod, Matrix, OwnPairs
from tensorbench.methods.sizes import AnyTargets, OneRank, Targeted
from tensorbench.methods.slices import by_site


class FLoRA(OneRank, Targeted, LowRankMethod):
    """y = W·x + b + scale · B·Gᵀ·Aᵀ·x, with A (in, rank), G (rank, rank) and B (out, rank).

    Start (reference code): A and B normal with variance 1/(2·rank), G zero. So the first step changes only G.
    The scale is not divided by the rank. The reference code accepts two ranks, one for each side of G; here
    they are equal. It also adapts convolutions, which the backbones here do not have at their sites.
    """

    name: ClassVar[str] = "flora"
    title: ClassVar[str] = "FLoRA"

    targets: AnyTargets = "qkv"

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts rank · (in + out) + rank², summed over all sites."""
        return geometry.layers * sum(rank * sum(sides) + rank**2 for sides in self.adapted(geometry).values())

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Returns the largest of the smaller sides of all adapted weights."""
        return (geometry.full_rank(self.projections),)

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> _Cores:
        return _Cores(self, geometry, generator)


class _Cores(OwnPairs):
    """The parameters `A` (layers, in, r), `G` (layers, r, r) and `B` (layers, out, r) of each projection."""

    def __init__(self, method: FLoRA, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__(geometry.sites(method.projections))
        self.scale, rank = method.scale, method.resolved_rank
        self.A, self.G, self.B = (nn.ParameterDict() for _ in range(3))
        for name, (out, in_) in method.adapted(geometry).items():
            for factors, side in ((self.A, in_), (self.B, out)):
                factor = torch.empty(geometry.layers, side, rank)
                factors[name] = nn.Parameter(factor.normal_(std=math.sqrt(0.5 / rank), generator=generator))
            self.G[name] = nn.Parameter(torch.zeros(geometry.layers, rank, rank))

    def contract(self) -> Contracted:
        downs = by_site({name: factor.mT for name, factor in self.A.items()})
        middles = by_site({name: core.mT * self.scale for name, core in self.G.items()})
        return Contracted(
            [downs[site] for site in self.down_of],
            by_site(dict(self.B.items())),
            middles={site: Matrix(middle) for site, middle in middles.items()},
        )
