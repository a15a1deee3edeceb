"""No adapter at all: the floor of every comparison."""

from __future__ import annotations

from typing import ClassVar, Self

import torch

from methods.backbone import Backbone, Geometry
from methods.base import Method
from methods.lowrank import Contracted, LowRankAdapter, Parametrisation


class HeadOnly(Method):
    """Trains the task head on the frozen backbone."""

    name: ClassVar[str] = "head_only"
    sizeable: ClassVar[bool] = False

    @property
    def projections(self) -> tuple[str, ...]:
        return ()

    @property
    def size(self) -> tuple[int, ...]:
        return ()

    @property
    def title(self) -> str:
        return "head only"

    def count(self, geometry: Geometry) -> int:
        return 0

    def isorank(self, rank: int) -> Self:
        return self

    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        return self

    def put(self, backbone: Backbone, generator: torch.Generator) -> LowRankAdapter:
        return LowRankAdapter(backbone, _Nothing())


class _Nothing(Parametrisation):
    def __init__(self) -> None:
        super().__init__()
        self.down_of = {}

    def contract(self) -> Contracted:
        return Contracted([], {})
