"""LoRA with one down-projection shared by the whole model: ΔW of a site = up_site · down."""

import torch
from torch import nn

from tensorbench.methods import Geometry
from tensorbench.methods.lowrank import Contracted, LowRankMethod, Parametrisation
from tensorbench.methods.sizes import OneRank


class SharedDown(OneRank, LowRankMethod):
    name = "shared_down"

    @property
    def projections(self):
        return ("query", "key", "value")

    def count_at(self, geometry, rank):
        outs = [geometry.shape(site.projection)[0] for site in geometry.sites(self.projections)]
        return rank * (geometry.hidden + sum(outs))  # key and value may be smaller than query

    def parametrise(self, geometry: Geometry, generator: torch.Generator):
        return Tensors(self, geometry, generator)


class Tensors(Parametrisation):
    def __init__(self, method, geometry, generator):
        super().__init__()
        self.scale, rank = method.scale, method.resolved_rank
        sites = geometry.sites(method.projections)
        self.down_of = dict.fromkeys(sites, 0)  # every site reads down number 0
        self.down = nn.Parameter(
            torch.randn(rank, geometry.hidden, generator=generator) / geometry.hidden**0.5
        )
        # Zero, so that the update starts at zero.
        self.ups = nn.ParameterList(torch.zeros(geometry.shape(site.projection)[0], rank) for site in sites)

    def contract(self):
        ups = (self.scale * up for up in self.ups)
        return Contracted(downs=[self.down], ups=dict(zip(self.down_of, ups, strict=True)))
