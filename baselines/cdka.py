"""CDKA (arXiv 2602.01267): each update is a sum of Kronecker products of a tall and a wide matrix."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import nn

from tensorbench.methods.backbone import Geometry
from tensorbench.methods.errors import UserError
from tensorbench.methods.lowrank import Contracted, LowRankMethod, OwnPairs
from tensorbench.methods.sizes import AnyTargets, OneRank, Targeted
from tensorbench.methods.validation import Scale


class CDKA(OneRank, Targeted, LowRankMethod):
    """y = W·x + b + scale/√(rank·r2) · Σ_i (B_i ⊗ A_i)·x, with A_i (r1, in/r2) and B_i (out/r1, r2).

    r1 divides the output size and r2 the input size. With r1 = r2 = 1, CDKA is LoRA with the scale of rsLoRA.
    The update is a low-rank pair whose rank is rank · r1 · r2. Start (the authors' default): A uniform in
    ±√(r2/in), B zero. The authors' code of the layer was not accessible, so forward and scale follow two
    ports by others, which agree and have no dropout.
    """

    name: ClassVar[str] = "cdka"
    title: ClassVar[str] = "CDKA"
    #: The learning rate in the authors' script for LLaMA-2-7B.
    published_lr: ClassVar[float | None] = 2e-4

    targets: AnyTargets = "qkvo+mlp"
    #: LoRA's alpha. It is divided by √(rank·r2).
    scale: Scale = 64.0
    #: The number of rows of each A. It has to divide every output size.
    r1: PositiveInt = 2
    #: The number of columns of each B. It has to divide every input size.
    r2: PositiveInt = 2

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts rank · (r1·in/r2 + r2·out/r1), summed over all sites.

        Raises UserError unless `r1` divides every output size and `r2` every input size.
        """
        shapes = self.adapted(geometry).values()
        for name, (out, in_) in self.adapted(geometry).items():
            for size, divisor, option in ((out, self.r1, "r1"), (in_, self.r2, "r2")):
                if size % divisor:
                    raise UserError(
                        f"{self.label}: {option} should divide {size:,}, a side of {name} (got {divisor})"
                    )
        return (
            geometry.layers
            * rank
            * sum(self.r1 * in_ // self.r2 + self.r2 * out // self.r1 for out, in_ in shapes)
        )

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Returns the largest min(r1·in/r2, r2·out/r1) of any adapted weight.

        With this many terms, every update can be any matrix.
        """
        sides = (
            min(self.r1 * in_ // self.r2, self.r2 * out // self.r1)
            for out, in_ in self.adapted(geometry).values()
        )
        return (max(sides),)

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> _Terms:
        return _Terms(self, geometry, generator)


class _Terms(OwnPairs):
    """The parameters `A` (layers, rank, r1, in/r2) and `B` (layers, rank, out/r1, r2) of each projection."""

    def __init__(self, method: CDKA, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__(geometry.sites(method.projections))
        rank, self.r1, self.r2 = method.resolved_rank, method.r1, method.r2
        self.scale = method.scale / math.sqrt(rank * self.r2)
        self.A, self.B = nn.ParameterDict(), nn.ParameterDict()
        for name, (out, in_) in method.adapted(geometry).items():
            bound = math.sqrt(self.r2 / in_)
            wide = torch.empty(geometry.layers, rank, self.r1, in_ // self.r2)
            self.A[name] = nn.Parameter(wide.uniform_(-bound, bound, generator=generator))
            self.B[name] = nn.Parameter(torch.zeros(geometry.layers, rank, out // self.r1, self.r2))

    def contract(self) -> Contracted:
        downs, ups = {}, {}
        for name, wide in self.A.items():
            # (layers, rank·r2·r1, in): A_i[q, t] is in row (i, v, q) and column (v, t).
            same = torch.eye(self.r2, dtype=wide.dtype, device=wide.device)
            downs[name] = torch.einsum("liqt,vw->livqwt", wide, same).flatten(4).flatten(1, 3)
        for name, tall in self.B.items():
            # (layers, out, rank·r2·r1): B_i[u, v] is in row (u, q) and column (i, v, q).
            same = torch.eye(self.r1, dtype=tall.dtype, device=tall.device) * self.scale
            ups[name] = torch.einsum("liuv,qp->luqivp", tall, same).flatten(3).flatten(1, 2)
        return self.contracted(downs, ups)
