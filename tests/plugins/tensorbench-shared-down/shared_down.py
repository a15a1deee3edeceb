"""LoRA with one down-projection for the whole model: ΔW of a site = up_site · down."""

import torch
from torch import nn

from methods import Geometry
from methods.lowrank import Contracted, LowRankMethod, Parametrisation
from methods.sizes import OneRank


class SharedDown(OneRank, LowRankMethod):
    name = "shared_down"

    @property
    def projections(self):
        return ("query", "key", "value")

    def count_at(self, geometry, rank):
        return rank * geometry.hidden * (1 + 3 * geometry.layers)

    def parametrise(self, geometry: Geometry, generator: torch.Generator):
        sites = geometry.sites(self.projections)
        return Tensors(sites, geometry.hidden, self.resolved_rank, self.scale, generator)


class Tensors(Parametrisation):
    def __init__(self, sites, hidden, rank, scale, generator):
        super().__init__()
        self.scale = scale
        self.down_of = dict.fromkeys(sites, 0)  # every site reads down number 0
        self.down = nn.Parameter(torch.randn(rank, hidden, generator=generator) / hidden**0.5)
        self.up = nn.Parameter(torch.zeros(len(sites), hidden, rank))  # zero: the update starts at zero

    def contract(self):
        ups = (self.scale * self.up).unbind()
        return Contracted(downs=[self.down], ups=dict(zip(self.down_of, ups, strict=True)))
