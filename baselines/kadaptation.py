"""KAdaptation (arXiv 2203.16329): each update is a sum of Kronecker products with small shared matrices."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import nn

from tensorbench.methods.backbone import Geometry
from tensorbench.methods.errors import UserError
from tensorbench.methods.lowrank import Contracted, LowRankMethod, OwnPairs
from tensorbench.methods.sizes import AnyTargets, OneRank, Targeted
from tensorbench.methods.validation import Scale

#: The standard deviation of the initial rules l and r. Compacter (arXiv 2106.04647) uses it for rules that
#: layers do not share.
RULE_STD = 0.01


class KAdaptation(OneRank, Targeted, LowRankMethod):
    """y = W·x + b + scale · Σ_i (r_i ⊗ R_i)·(l_i ⊗ L_i)ᵀ·x over `products` terms.

    The sum is a parametrised hypercomplex multiplication (PHM). l_i and r_i, of length `products`, are called
    rules: each projection has its own, which all layers share. Each site has its own L_i (in/products, rank)
    and R_i (out/products, rank). The update is a low-rank pair whose rank is products · rank.

    Start: rules normal with standard deviation 0.01, L uniform in ±√(12/(in/products + rank)), R zero. That
    only R is zero is our choice: in the released code L and R are both zero, so that only a bias ever trains.
    Here, there is no bias. The released code drops half of the update's entries in training; we drop none.
    """

    name: ClassVar[str] = "kadaptation"
    title: ClassVar[str] = "KAdaptation"

    targets: AnyTargets = "qv"
    #: The factor of the update. 160 in the reference code, which computes it as 128 / 4 · 5.
    scale: Scale = 160.0
    #: The number of terms, and the length of each rule. It has to divide every side of a weight. 32 in the
    #: reference code, where all sides are 768.
    products: PositiveInt = 4

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts rank · (in + out) for every site, plus 2·products² for every projection.

        Raises UserError unless `products` divides both sides of every weight.
        """
        shapes = self.adapted(geometry)
        for name, sides in shapes.items():
            if any(side % self.products for side in sides):
                raise UserError(
                    f"{self.label}: products should divide both sides of {name}, {sides[0]:,} × {sides[1]:,} "
                    f"(got {self.products})"
                )
        return geometry.layers * rank * sum(map(sum, shapes.values())) + 2 * len(shapes) * self.products**2

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Returns ⌈n / products⌉, where n is the smaller side of the largest adapted weight.

        At this rank, every update can have full rank.
        """
        return (-(-geometry.full_rank(self.projections) // self.products),)

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> _Rules:
        return _Rules(self, geometry, generator)


class _Rules(OwnPairs):
    """The parameters of each projection: rules `l` and `r` (terms, products), and the matrices `L` and `R`.

    `L` is (layers, terms, in/products, rank), and `R` is (layers, terms, out/products, rank).
    """

    def __init__(self, method: KAdaptation, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__(geometry.sites(method.projections))
        self.scale, terms, rank = method.scale, method.products, method.resolved_rank
        self.l, self.r, self.L, self.R = (nn.ParameterDict() for _ in range(4))
        for name, (out, in_) in method.adapted(geometry).items():
            for rules in (self.l, self.r):
                rule = torch.empty(terms, terms).normal_(std=RULE_STD, generator=generator)
                rules[name] = nn.Parameter(rule)
            bound = (12 / (in_ // terms + rank)) ** 0.5
            left = torch.empty(geometry.layers, terms, in_ // terms, rank)
            self.L[name] = nn.Parameter(left.uniform_(-bound, bound, generator=generator))
            self.R[name] = nn.Parameter(torch.zeros(geometry.layers, terms, out // terms, rank))

    def contract(self) -> Contracted:
        downs = {
            name: torch.einsum("in,Limr->Lirnm", self.l[name], left).flatten(3).flatten(1, 2)
            for name, left in self.L.items()
        }
        ups = {
            name: torch.einsum("in,Limr->Lnmir", self.r[name] * self.scale, right).flatten(3).flatten(1, 2)
            for name, right in self.R.items()
        }
        return self.contracted(downs, ups)
