"""TRAC (ICLR 2026, github.com/BangguoYe/TRAC): LoRA whose matrices are tensor trains with shared cores."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tensorbench.methods.backbone import Geometry
from tensorbench.methods.lowrank import Contracted, LowRankMethod, OwnPairs, Parametrisation
from tensorbench.methods.sizes import OneRank, Targeted
from tensorbench.methods.trains import balanced
from tensorbench.methods.validation import Scale

#: TRAC's modes (of A and B) and inner ranks (of A) by size, from its reference code. The inner ranks of B are
#: three times those of A.
PUBLISHED_CORES: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    768: ((8, 8, 12), (8, 12)),
    1024: ((8, 8, 16), (8, 12)),
    1280: ((8, 8, 20), (12, 24)),
    4096: ((16, 16, 16), (12, 24)),
    5120: ((16, 16, 20), (15, 30)),
}
MODES, WIDER = 3, 3


#: The modes n₁, n₂, n₃ and the inner ranks ρ₁, ρ₂ of the cores (1, n₁, ρ₁), (ρ₁, n₂, ρ₂) and (ρ₂, n₃, r) of A
#: or B for one projection.
SideCores = tuple[tuple[int, ...], tuple[int, ...]]


def cores_of(size: int, *, output: bool) -> SideCores:
    """Returns the cores of A (or, with `output`, of B) for a size, from TRAC's reference code.

    For other sizes our rule is: the modes are three factors with the smallest sum, and the inner ranks are
    those of the next smaller size in the table or, if there is none, of the table's smallest size. If a size
    has fewer than three factors, the first modes are 1.
    """
    nearest = max((entry for entry in PUBLISHED_CORES if entry <= size), default=min(PUBLISHED_CORES))
    modes, inner = PUBLISHED_CORES[nearest]
    if size != nearest:
        factors = balanced(size, MODES)
        modes = (1,) * (MODES - len(factors)) + factors
    return modes, tuple(WIDER * rank for rank in inner) if output else inner


class TRAC(OneRank, Targeted, LowRankMethod):
    """y = W·x + b + scale/rank · B·A·dropout(x); A (rank, in) and B (out, rank) are trains of three cores.

    Each layer has its own first core. All layers of a projection share the second core, which is random and
    frozen, and the third core, which is trained. Each layer scales the third core along its left rank and
    along its mode by two vectors, which are called controllers. Start (reference code): normal cores, all
    controllers one, and B's third core zero, so that the first step changes only that core.
    """

    name: ClassVar[str] = "trac"
    title: ClassVar[str] = "TRAC"
    #: The learning rate in the reference code for GLUE.
    published_lr: ClassVar[float | None] = 1e-3

    #: LoRA's alpha. It is divided by the rank. 32 in the reference code, which uses rank 16.
    scale: Scale = 32.0
    dropout: float = Field(0.05, ge=0.0, lt=1.0)
    #: What scales the third core. `plain`: the controllers themselves, as in the reference code. `softmax`:
    #: the softmax of a controller, times its length, as in the README of the reference code. With either
    #: option, all scales are one at the start.
    controllers: Literal["plain", "softmax"] = "plain"

    def cores(self, geometry: Geometry) -> dict[str, tuple[SideCores, SideCores]]:
        """Returns the sizes of the cores of A and of B for every projection."""
        shapes = self.adapted(geometry).items()
        return {
            name: (cores_of(in_, output=False), cores_of(out, output=True)) for name, (out, in_) in shapes
        }

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts Σ (L·(n₁·ρ₁ + ρ₂ + n₃) + ρ₂·n₃·r), with the sum over A and B of every projection.

        L is the number of layers, and `SideCores` explains n and ρ. Each layer has its own first core and its
        own controllers of the third core.
        """
        sides = [side for pair in self.cores(geometry).values() for side in pair]
        return sum(
            geometry.layers * (n1 * inner1 + inner2 + n3) + inner2 * n3 * rank
            for (n1, _, n3), (inner1, inner2) in sides
        )

    def frozen_count(self, geometry: Geometry) -> int:
        """Counts Σ ρ₁·n₂·ρ₂, the second cores, with the sum over A and B of every projection.

        `SideCores` explains n and ρ. The second cores are recomputed from a seed.
        """
        sides = [side for pair in self.cores(geometry).values() for side in pair]
        return sum(inner1 * n2 * inner2 for (_, n2, _), (inner1, inner2) in sides)

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        return (geometry.full_rank(self.projections),)

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        return _SharedCores(self, geometry, generator)


class _SharedCores(OwnPairs):
    def __init__(self, method: TRAC, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__(geometry.sites(method.projections))
        rank = method.resolved_rank
        self.scale, self.softmax = method.scale / rank, method.controllers == "softmax"
        self.sides, self.stds = nn.ModuleDict(), {}
        self.draw_seed(generator)
        for name, pair in method.cores(geometry).items():
            std = sum(geometry.shape(name)) ** -0.5
            for side, (modes, (left, right)) in zip("AB", pair, strict=True):
                made = nn.Module()
                made.first = nn.Parameter(torch.empty(geometry.layers, modes[0], left))
                made.last = nn.Parameter(torch.zeros(right, modes[2], rank))
                made.ranks = nn.Parameter(torch.ones(geometry.layers, 1, right))
                made.mode = nn.Parameter(torch.ones(geometry.layers, 1, modes[2], 1))
                middle = torch.empty(left, modes[1], right)
                self.register_buffer(f"middle_{name}_{side}", middle, persistent=False)
                # The reference code treats the rank as a fourth mode of the shared cores.
                self.stds[f"{name}_{side}"] = std ** (1 / 4) / right**0.5
                nn.init.normal_(made.first, std=std ** (1 / 3) / left**0.5, generator=generator)
                if side == "A":
                    nn.init.normal_(made.last, std=std ** (1 / 4) / rank**0.5, generator=generator)
                self.sides[f"{name}_{side}"] = made
        self.remake()
        self.projections = tuple(method.cores(geometry))

    @torch.no_grad()
    def remake(self) -> None:
        generator = self.seeded()
        for side, std in self.stds.items():
            middle = self.get_buffer(f"middle_{side}")
            middle.copy_(torch.randn(middle.shape, generator=generator) * std)

    def contract(self) -> Contracted:
        downs = {name: self._matrices(f"{name}_A").mT * self.scale for name in self.projections}
        ups = {name: self._matrices(f"{name}_B") for name in self.projections}
        return self.contracted(downs, ups)

    def _matrices(self, side: str) -> Tensor:
        """Returns the matrices (layers, n₁·n₂·n₃, r) of `side`, which is A or B of a projection."""
        cores, middle = self.sides[side], self.get_buffer(f"middle_{side}")
        ranks: Tensor = cores.get_parameter("ranks")
        mode: Tensor = cores.get_parameter("mode")
        if self.softmax:
            ranks, mode = ranks.softmax(-1) * ranks.shape[-1], mode.softmax(-2) * mode.shape[-2]
        own, last = cores.get_parameter("first"), cores.get_parameter("last")
        first = (own @ middle.flatten(1)).unflatten(-1, middle.shape[1:]).flatten(1, 2)
        return (((first * ranks) @ last.flatten(1)).unflatten(-1, last.shape[1:]) * mode).flatten(1, 2)
