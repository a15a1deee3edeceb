"""The head alone, without an adapter: the floor of every comparison."""

from __future__ import annotations

from typing import ClassVar

import torch

from tensorbench.methods.backbone import Backbone, Geometry
from tensorbench.methods.lowrank import Contracted, LowRankAdapter, Parametrisation
from tensorbench.methods.sizes import Unsized


class HeadOnly(Unsized):
    """Trains the task head on the frozen backbone."""

    name: ClassVar[str] = "head_only"
    title: ClassVar[str] = "head only"
    projections: ClassVar[tuple[str, ...]] = ()

    def count(self, geometry: Geometry) -> int:
        return 0

    def put(self, backbone: Backbone, generator: torch.Generator) -> LowRankAdapter:
        return LowRankAdapter(backbone, _Nothing())


class _Nothing(Parametrisation):
    def __init__(self) -> None:
        super().__init__()
        self.down_of = {}

    def contract(self) -> Contracted:
        return Contracted([], {})
