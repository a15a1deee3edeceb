"""MoRe (arXiv 2408.17383): each update is a product of two block-diagonal matrices and two permutations."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import nn

from tensorbench.methods.backbone import Geometry
from tensorbench.methods.lowrank import Contracted, LowRankMethod, OwnPairs
from tensorbench.methods.sizes import AnyTargets, OneRank, Targeted


class MoRe(OneRank, Targeted, LowRankMethod):
    """y = W·x + b + scale · P₂·blockdiag(L₁ … L_N)·P₁·blockdiag(R₁ … R_N)·x with N = `blocks`.

    R_k is (rank, in/N) and L_l is (out/N, rank). Of the N·rank values between the two, L_l reads those whose
    index is congruent to l modulo N, and writes the outputs whose index is congruent to l modulo N (counted
    from 0). So the update has LoRA's count at `rank` and a rank of up to N·`rank`. Sides that N does not
    divide are padded.

    Start (reference code): R uniform in ±1/√(in/N), L zero. The reference code has no scale, and its L are as
    tall as a whole number of R's columns, which is more than here if a weight is not square. Its dropout acts
    on the update's output; here it acts on the input.
    """

    name: ClassVar[str] = "more"
    title: ClassVar[str] = "MoRe"

    targets: AnyTargets = "qkv"
    #: The number of blocks N. 4 in the reference code.
    blocks: PositiveInt = 4

    def sides(self, geometry: Geometry) -> dict[str, tuple[int, int]]:
        """Returns the rows of each L and the columns of each R, by projection."""
        return {
            name: (-(-out // self.blocks), -(-in_ // self.blocks))
            for name, (out, in_) in self.adapted(geometry).items()
        }

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts N · rank · (⌈in/N⌉ + ⌈out/N⌉), summed over all sites."""
        return geometry.layers * self.blocks * rank * sum(map(sum, self.sides(geometry).values()))

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Returns the largest of the smaller sides of all blocks.

        At this rank, every update can have full rank.
        """
        return (max(map(min, self.sides(geometry).values())),)

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> _Blocks:
        return _Blocks(self, geometry, generator)


class _Blocks(OwnPairs):
    """The parameters `R` (layers, N, r, in/N) and `L` (layers, N, out/N, r) of each projection."""

    def __init__(self, method: MoRe, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__(geometry.sites(method.projections))
        self.scale, blocks, rank = method.scale, method.blocks, method.resolved_rank
        self.shapes = method.adapted(geometry)
        self.R, self.L = nn.ParameterDict(), nn.ParameterDict()
        for name, (rows, columns) in method.sides(geometry).items():
            bound = 1 / math.sqrt(columns)
            right = torch.empty(geometry.layers, blocks, rank, columns)
            self.R[name] = nn.Parameter(right.uniform_(-bound, bound, generator=generator))
            self.L[name] = nn.Parameter(torch.zeros(geometry.layers, blocks, rows, rank))

    def contract(self) -> Contracted:
        downs, ups = {}, {}
        for name, (out, in_) in self.shapes.items():
            right, left = self.R[name], self.L[name]
            same = torch.eye(right.shape[1], dtype=right.dtype, device=right.device)
            # Row (k, q) and column (k, p) of the down; row (s, m) and column (q, m) of the up.
            downs[name] = torch.einsum("lkqp,kj->lkqjp", right, same).flatten(3).flatten(1, 2)[..., :in_]
            ups[name] = (
                torch.einsum("lmsq,mn->lsmqn", left, same * self.scale).flatten(3).flatten(1, 2)[:, :out]
            )
        return self.contracted(downs, ups)
