"""The head alone, without an adapter: the floor of every comparison, by training or by scikit-learn."""

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


class ConvergedHead(HeadOnly):
    """Logistic regression on the frozen features, or ridge regression for numeric targets.

    A trial fits the head to the training examples without augmentation and chooses the penalty by validation
    loss (`tensorbench.training.converged`). It has no learning rate or number of epochs to tune.
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
