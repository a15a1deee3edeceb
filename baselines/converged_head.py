"""Converged head (scikit-learn): logistic regression on the frozen features, and no adapter."""

from __future__ import annotations

from typing import ClassVar

from baselines.head_only import HeadOnly


class ConvergedHead(HeadOnly):
    """Logistic regression on the frozen features, ridge regression where the target is a number.

    A trial fits it to the training examples without augmentation and chooses the penalty by validation loss
    (`bench.training.converged`). No learning rate and no number of epochs can be wrong.
    """

    name: ClassVar[str] = "converged_head"
    title: ClassVar[str] = "converged head"
    fits_head: ClassVar[bool] = True
