"""Converged head (scikit-learn): logistic regression on the frozen features, and no adapter."""

from __future__ import annotations

from typing import ClassVar

from tensorbench.baselines.head_only import HeadOnly


class ConvergedHead(HeadOnly):
    """Logistic regression on the frozen features, or ridge regression for numeric targets.

    A trial fits the head to the training examples without augmentation and chooses the penalty by validation
    loss (`tensorbench.training.converged`). It has no learning rate or number of epochs to tune.
    """

    name: ClassVar[str] = "converged_head"
    title: ClassVar[str] = "converged head"
    fits_head: ClassVar[bool] = True
