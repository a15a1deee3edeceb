"""LoRETTA-rep (NAACL 2024, arXiv 2402.11417): LoRA whose two matrices are tensor trains."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from tensorbench.baselines.shapes import Width, loretta_modes
from tensorbench.methods.backbone import Geometry
from tensorbench.methods.lowrank import Contracted, LowRankMethod, OwnPairs, Parametrisation
from tensorbench.methods.trains import Trains, TrainsOfSites
from tensorbench.methods.validation import Scale


class LoRETTA(TrainsOfSites, LowRankMethod):
    """y = W·x + b + scale/width · B·A·dropout(x), with A (width, in) and B (out, width) each a tensor train.

    One train has the entries of Aᵀ (in, width), the other has those of Bᵀ (width, out), both row-major. All
    inner ranks are `rank`. Start (reference code): normal cores, such that the entries of A have variance
    1/(in + width) and those of B have variance 1/(out + width). So the initial update is not zero: its
    norm is about 5.6 per matrix of RoBERTa-base. The reference code also trains layer norms, and its
    classifier consists of trains. Here, layer norms and classifier are the same as for every other method.
    """

    name: ClassVar[str] = "loretta_rep"
    title: ClassVar[str] = "LoRETTA-rep"
    published_lr: ClassVar[float | None] = 1e-4

    #: LoRA's alpha. It is divided by `width`. 16 in the reference code.
    scale: Scale = 16.0
    dropout: float = Field(0.05, ge=0.0, lt=1.0)
    #: The rank of the update, which is LoRA's r. 8 in the reference code. (`rank` is the inner rank of the
    #: trains, 5 in the reference code.)
    width: Width = 8
    #: `zero`: the last core of every B starts at zero, so that the initial update is zero (our addition).
    start: Literal["published", "zero"] = "published"

    @property
    def nonzero_start(self) -> str:  # type: ignore[override]
        return "LoRETTA starts both of its factors at random" if self.start == "published" else ""

    def trains(self, geometry: Geometry) -> list[tuple[int, ...]]:
        """Returns the mode sizes of each tensor train in a layer."""
        sizes = [size for out, in_ in self.adapted(geometry).values() for size in (in_, out)]
        return [loretta_modes(size, self.width) for size in sizes]

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        return _TwoTrains(self, geometry, generator)


class _TwoTrains(OwnPairs):
    def __init__(self, method: LoRETTA, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__(geometry.sites(method.projections))
        self.width, self.scale = method.width, method.scale / method.width
        self.inputs: Any = nn.ModuleDict()
        self.outputs: Any = nn.ModuleDict()
        self.sizes = {name: in_ for name, (_, in_) in method.adapted(geometry).items()}
        for name, (out, in_) in method.adapted(geometry).items():
            for trains, size in ((self.inputs, in_), (self.outputs, out)):
                made = Trains(geometry.layers, loretta_modes(size, self.width), method.resolved_rank)
                made.draw_normal(1 / (size + self.width), generator)
                trains[name] = made
            if method.start == "zero":
                nn.init.zeros_(made.cores[-1])

    def contract(self) -> Contracted:
        inputs, outputs = self.inputs.items(), self.outputs.items()
        downs = {name: train.matrices(self.sizes[name]).mT * self.scale for name, train in inputs}
        ups = {name: train.matrices(self.width).mT for name, train in outputs}
        return self.contracted(downs, ups)
