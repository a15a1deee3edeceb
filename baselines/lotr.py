"""LoTR (arXiv 2402.01376): the query and value updates of all layers as one Tucker-2 tensor."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import nn

from tensorbench.methods.backbone import Geometry
from tensorbench.methods.lowrank import Contracted, Parametrisation, StackedMethod
from tensorbench.methods.sizes import OneRank
from tensorbench.methods.trains import core_shapes
from tensorbench.methods.validation import Scale


class LoTR(OneRank, StackedMethod):
    """y = W·x + b + scale/rank · left·M·right·x.

    The sites of one tensor share left and right, and each site has its own M (rank, rank). Start (reference
    code): left and right N(0, 1), every M zero. There is no bias. The reference code has no dropout.
    """

    name: ClassVar[str] = "lotr"
    title: ClassVar[str] = "LoTR"
    projections: ClassVar[tuple[str, ...]] = ("query", "value")

    #: LoRA's alpha. It is divided by the rank. 1 in the reference code.
    scale: Scale = 1.0
    #: `joint`: query and value are one tensor (d, 2·L, H·h), with the letters of `Geometry`. `separate`:
    #: query and value each have a tensor (d, L, H·h) with its own left and right.
    tensors: Literal["joint", "separate"] = "joint"

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts (d + H·h)·r for each tensor, plus 2·L·r². `Geometry` explains d, H, h and L."""
        ends = geometry.hidden + geometry.attention_width
        tensors = 1 if self.tensors == "joint" else 2
        return tensors * ends * rank + 2 * geometry.layers * rank**2

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Returns the larger of hidden size and attention width, the dimensions of right and left."""
        return (max(geometry.hidden, geometry.attention_width),)

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        return _SharedEnds(self, geometry, generator)


class _SharedEnds(Parametrisation):
    """The factors of LoTR as tensor trains, since a Tucker-2 tensor of three modes is a tensor train."""

    def __init__(self, method: LoTR, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__()
        rank = method.resolved_rank
        self.scale = method.scale / rank
        groups = [method.projections] if method.tensors == "joint" else [(p,) for p in method.projections]
        #: The sites of each tensor, in the order of its matrices.
        self.sites = [geometry.sites(group) for group in groups]
        self.down_of = {site: index for index, sites in enumerate(self.sites) for site in sites}
        self.tensors = nn.ModuleList()
        from tltorch import TTTensor

        for sites in self.sites:
            shape = (geometry.hidden, len(sites), geometry.attention_width)
            cores = [nn.Parameter(torch.zeros(core)) for core in core_shapes(shape, rank)]
            for end in (cores[0], cores[-1]):
                nn.init.normal_(end, generator=generator)
            self.tensors.append(TTTensor(cores, shape=shape, rank=(1, rank, rank, 1)))

    def contract(self) -> Contracted:
        contracted = Contracted([], {})
        for sites, tensor in zip(self.sites, self.tensors, strict=True):
            right, middles, left = tensor.parameters()
            ups = (left[..., 0].T * self.scale) @ middles.permute(1, 2, 0)
            contracted.downs.append(right[0].T)
            contracted.ups.update(zip(sites, ups.unbind(), strict=True))
        return contracted
