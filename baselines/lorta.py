"""LoRTA (arXiv 2410.04060): all attention updates as one five-way CP tensor."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import nn

from tensorbench.methods.backbone import Geometry
from tensorbench.methods.factorizations import cp_limit, khatri_rao
from tensorbench.methods.lowrank import Contracted, Diagonal, Parametrisation, StackedMethod
from tensorbench.methods.sizes import OneRank
from tensorbench.methods.slices import turned
from tensorbench.methods.validation import Scale


class LoRTA(OneRank, StackedMethod):
    """y = W·x + b + scale/rank · ΔW·x, where ΔW is a slice of a CP tensor (d, head size, heads, layers, 4).

    Start (reference code): the factor of the head size is zero, the factor of size d is uniform in ±1/√rank,
    and all other factors are uniform in ±√(6/rank). So steps shrink as the rank grows. For example, one Adam
    step at rate 5e-4 moves the query, key and value weights of ViT-B by a norm of 1.1e-1 at rank 4, and of
    3.6e-6 at rank 256; LoRA r=4 moves them by 9.6e-2. Adam's epsilon has a share: at rank 235, gradients of
    some factors are near 1e-8, and the first step is 54% of that with epsilon 0. At the budget of LoRA r=4,
    LoRTA hardly trains unless its learning rate is tuned.
    """

    name: ClassVar[str] = "lorta"
    title: ClassVar[str] = "LoRTA"
    projections: ClassVar[tuple[str, ...]] = ("query", "key", "value", "output")
    #: The adapter's learning rate in the reference code for CoLA.
    published_lr: ClassVar[float | None] = 1e-2

    #: LoRA's alpha. It is divided by the rank. 1 in the reference code for GLUE; 4, 16 or 128 for decoders.
    scale: Scale = 1.0
    #: The side of a weight that is split into heads: channel j of a head is channel head · head size + j of
    #: this side. The factor of size d is for the other side. `reference`: the input is split, which gives the
    #: real heads of the output projection only. `output_heads`: the output is split, which gives the real
    #: heads of query, key and value only. If heads · head size is not d, this option makes no difference:
    #: query, key and value split their output, and the output projection splits its input.
    orientation: Literal["reference", "output_heads"] = "reference"

    def shape(self, geometry: Geometry) -> tuple[int, ...]:
        """Returns the size of every mode."""
        sides = (geometry.hidden, geometry.head_size, geometry.heads)
        return (*sides, geometry.layers, len(self.projections))

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts r · (d + h + H + L + 4), with the letters of `Geometry`."""
        return rank * sum(self.shape(geometry))

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Returns the rank that suffices for every tensor of this shape.

        It is the product of all modes but the largest.
        """
        return (cp_limit(self.shape(geometry)),)

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        return _AttentionTensor(self, geometry, generator)


class _AttentionTensor(Parametrisation):
    def __init__(self, method: LoRTA, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__()
        rank = method.resolved_rank
        self.scale = method.scale / rank
        sites = geometry.sites(method.projections)
        #: The sites whose input is split into heads. All other sites split their output.
        self.split_inputs = {
            site
            for site in sites
            if (site.projection == "output" if turned(geometry) else method.orientation == "reference")
        }
        shape = method.shape(geometry)
        factors = [torch.zeros(size, rank) for size in shape]
        bounds = (1 / math.sqrt(rank), 0.0, *[math.sqrt(6 / rank)] * 3)
        for factor, bound in zip(factors, bounds, strict=True):
            if bound:
                nn.init.uniform_(factor, -bound, bound, generator=generator)
        from tltorch import CPTensor

        # The method has no CP weights, so the container's are ones and not trained.
        self.tensor = CPTensor(
            torch.ones(rank), [nn.Parameter(factor) for factor in factors], shape=shape, rank=rank
        )
        self.down_of = {site: int(site in self.split_inputs) for site in sites}

    def contract(self) -> Contracted:
        undivided, channels, heads, layers, projections = self.tensor.factors
        split = khatri_rao(heads, channels)
        # A site's diagonal is the product of the rows of its layer and its projection.
        diagonals = (khatri_rao(layers, projections) * self.scale).unsqueeze(1)
        return Contracted(
            [undivided.T, split.T],
            {site: undivided if site in self.split_inputs else split for site in self.down_of},
            middles=dict(zip(self.down_of, map(Diagonal, diagonals.unbind()), strict=True)),
        )
