"""ABBA (arXiv 2505.14238): each update is the elementwise product of two low-rank matrices."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn

from methods.adapter import Adapter
from methods.backbone import Backbone, Geometry
from methods.lowrank import Contracted, LowRankMethod, OwnPairs
from methods.sizes import AnyTargets, OneRank, Targeted
from methods.validation import Scale

#: Power steps of the randomised SVD (reference code), and its seed. scikit-learn also oversamples. The
#: reference code neither oversamples nor seeds the decomposition, so its results vary between runs.
ITERATIONS, SVD_SEED = 10, 42


class HadamardMethod(OneRank, Targeted, LowRankMethod):
    """A method whose update is (B₁·A₁) ⊙ (B₂·A₂) at every site, with A (rank, in) and B (out, rank).

    It is a low-rank pair of rank²: the columns of its up factor are the products of a column of B₁ and one of
    B₂, and the rows of its down factor likewise. No dense update is built.
    """

    #: Whether `scale` is divided by the rank.
    divided_by_rank: ClassVar[bool]

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts 2·rank·(in + out) for every site."""
        return 2 * geometry.layers * rank * sum(map(sum, self.adapted(geometry).values()))

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """⌈√n⌉ for the smallest side n of a weight: at this rank the product has full rank."""
        return (math.isqrt(min(map(min, self.adapted(geometry).values())) - 1) + 1,)


class HadamardPairs(OwnPairs):
    """`A1`, `A2` (layers, rank, in) and `B1`, `B2` (layers, out, rank) of each projection, all zero."""

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
    """Multiplies every row of one (layers, r, n) by every row of the other: (layers, r², n)."""
    return (first.unsqueeze(2) * second.unsqueeze(1)).flatten(1, 2)


class ABBA(HadamardMethod):
    """y = W·x + b + scale · ((B₁·A₁) ⊙ (B₂·A₂))·x.

    Start (reference code): B₁ = U·√Σ and A₁ = √Σ·Vᵀ from the largest singular values of W, A₂ uniform in
    ±√(6/in), B₂ zero; W itself is unchanged. The scale is √(α₁·α₂) of the reference code, not divided by a
    rank. Both ranks are equal, as in the reference code, which ignores a second rank. There is no dropout.
    """

    name: ClassVar[str] = "abba"
    title: ClassVar[str] = "ABBA"
    divided_by_rank: ClassVar[bool] = False
    published_lr: ClassVar[float | None] = 1e-3
    published_scale: ClassVar[float | None] = 32.0

    targets: AnyTargets = "qkvo+mlp"
    #: α₁ = α₂ in the reference code, which uses rank 32.
    scale: Scale = 32.0

    @classmethod
    def listed(cls) -> tuple[Self, ...]:
        """The method on attention only: with the MLP, rank 1 exceeds LoRA r=4 on query, key and value."""
        return (cls.model_validate({"targets": "qkvo"}),)

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
            left, right = _balanced(base.weight, self.resolved_rank)
            with torch.no_grad():
                pairs.B1[site.projection][site.layer].copy_(left)
                pairs.A1[site.projection][site.layer].copy_(right)
        return adapter


def _balanced(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns U·√Σ (out, rank) and √Σ·Vᵀ (rank, in) for the largest singular values."""
    matrix = weight.detach().double().cpu().numpy()
    u, s, vh = map(torch.from_numpy, randomized_svd(matrix, rank, n_iter=ITERATIONS, random_state=SVD_SEED))
    return u * s.sqrt(), s.sqrt()[:, None] * vh
