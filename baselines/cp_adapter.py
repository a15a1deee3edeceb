"""CP adapters (arXiv 2606.00428): each update is a CP tensor of its own."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from tensorbench.methods.backbone import Geometry
from tensorbench.methods.factorizations import cp_limit, khatri_rao
from tensorbench.methods.lowrank import Contracted, LowRankMethod, OwnPairs, Parametrisation
from tensorbench.methods.sizes import OneRank, Targeted
from tensorbench.methods.trains import balanced

#: The number of modes on each side of a weight.
MODES = 2


def modes_of(size: int) -> tuple[int, ...]:
    """Splits a size into two ascending factors with the smallest sum, for example 2,048 into 32 and 64.

    This example is the paper's. A prime size gives (1, size).
    """
    modes = balanced(size, MODES)
    return (1,) * (MODES - len(modes)) + modes


class CPAdapter(OneRank, Targeted, LowRankMethod):
    """y = W·x + b + scale · ΔW·x, with ΔW a CP tensor (in₁, in₂, out₁, out₂) of `rank` components.

    A component has a weight and a unit vector for each mode: 193 numbers for a matrix of 2,048 × 2,048.

    Only the paper's abstract was accessible, so no result here reproduces the paper. These are our choices:
    which modes are the input; vectors normalised in every forward; a start of normal vectors and zero
    weights, so that the first step changes only the weights; a scale that is not divided by the rank; and
    query and value as projections.
    """

    name: ClassVar[str] = "cp"
    title: ClassVar[str] = "CP adapters"

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts L · r · Σ (in₁ + in₂ + out₁ + out₂ + 1), with the sum over the projections, and L layers."""
        sizes = sum(1 + sum(modes_of(in_) + modes_of(out)) for out, in_ in self.adapted(geometry).values())
        return geometry.layers * rank * sizes

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Returns the rank that suffices for the tensors of all projections.

        For one tensor, it is the product of all modes but the largest.
        """
        return (max(cp_limit(modes_of(in_) + modes_of(out)) for out, in_ in self.adapted(geometry).values()),)

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        return _Components(self, geometry, generator)


class _Components(OwnPairs):
    """The parameters of each projection: weights (layers, 1, r), and a factor (layers, n, r) per mode."""

    def __init__(self, method: CPAdapter, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__(geometry.sites(method.projections))
        self.scale = method.scale
        self.factors, self.weights = nn.ModuleDict(), nn.ParameterDict()
        for name, (out, in_) in method.adapted(geometry).items():
            shapes = [(geometry.layers, size, method.resolved_rank) for size in modes_of(in_) + modes_of(out)]
            self.factors[name] = nn.ParameterList(torch.randn(shape, generator=generator) for shape in shapes)
            self.weights[name] = nn.Parameter(torch.zeros(geometry.layers, 1, method.resolved_rank))

    def contract(self) -> Contracted:
        downs, ups = {}, {}
        for name, weights in self.weights.items():
            units = (F.normalize(factor, dim=1) for factor in self.factors[name].parameters())
            first, second, third, fourth = units
            downs[name] = khatri_rao(first, second).mT
            ups[name] = khatri_rao(third, fourth) * (weights * self.scale)
        return self.contracted(downs, ups)
