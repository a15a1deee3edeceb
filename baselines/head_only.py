"""No adapter at all: the floor of every comparison."""

from __future__ import annotations

from typing import ClassVar

import torch

from methods.backbone import Backbone, Geometry
from methods.lowrank import Contracted, LowRankAdapter, Parametrisation
from methods.sizes import Unsized


class HeadOnly(Unsized):
    """Trains the task head on the frozen backbone."""

    name: ClassVar[str] = "head_only"
    title: ClassVar[str] = "head only"
    projections: ClassVar[tuple[str, ...]] = ()

    def count(self, geometry: Geometry) -> int:
        return 0

    def put(self, backbone: Backbone, generator: torch.Generator) -> LowRankAdapter:
        return LowRankAdapter(backbone, _Nothing())


class ConvergedHead(HeadOnly):
    """Logistic regression on the frozen features, ridge regression where the target is a number.

    A trial fits it to the training examples without augmentation and chooses the penalty by validation loss
    (`bench.training.converged`). No learning rate and no number of epochs can be wrong.
    """

    name: ClassVar[str] = "converged_head"
    title: ClassVar[str] = "converged head"
    fits_head: ClassVar[bool] = True


class _Nothing(Parametrisation):
    def __init__(self) -> None:
        super().__init__()
        self.down_of = {}

    def contract(self) -> Contracted:
        return Contracted([], {})
