"""The interface of a metric."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: The kind of a task's target: one class, any number of classes, a number, or a written text.
Kind = Literal["single label", "multi-label", "regression", "generation"]

KINDS: tuple[Kind, ...] = ("single label", "multi-label", "regression", "generation")


class Metric(ABC):
    """A score of predictions. To add one, write a subclass in a package of yours::

        class MeanError(Metric):
            name = "mean_error"
            kinds = ("regression",)
            higher = False
            in_units = True
            description = "mean absolute error"

            def score(self, targets, predictions):
                return float(abs(targets - predictions).mean())


        MEAN_ERROR = MeanError()

    and name the instance in its entry-point group `tensorbench.metrics`. Selection, tuning, searches,
    statistics and reports use it from there.

    `score` and `contributions` get N examples. Single label: `targets` int64 (N,), answers int64 (N,) with -1
    for none, outputs float (N, classes), the logits. Multi-label: `targets` and answers 0 or 1 (N, classes),
    outputs (N, classes), the logits. Regression: all float (N,), in the unit of the targets. Generation: see
    `bench.metrics.generation`. `reads` says whether `predictions` are the answers or the outputs.
    """

    name: str
    #: The kinds of target that the metric can score.
    kinds: tuple[Kind, ...]
    description: str
    reads: Literal["answers", "outputs"] = "answers"
    #: Whether larger scores are better.
    higher: bool = True
    #: Whether scores have the unit of the targets, so that scores of two tasks cannot be averaged.
    #: Otherwise scores are shown in percent.
    in_units: bool = False
    #: The smallest and the largest possible score, which also limit intervals.
    bounds: tuple[float, float] = (-math.inf, math.inf)
    #: The difference, in points, that matters as much as a point of accuracy. For a metric with a unit, in
    #: percent of the score.
    point: float = 1.0
    #: Whether the metric needs examples with and without each class.
    every_class: bool = False
    #: The number of classes that the metric needs. None: any number.
    classes: int | None = None

    @abstractmethod
    def score(self, targets: NDArray[Any], predictions: NDArray[Any]) -> float:
        """The score of N answers or outputs. Raises UserError if it is undefined for these targets."""

    def contributions(self, targets: NDArray[Any], predictions: NDArray[Any]) -> Array:
        """The contribution of each example (N,) to the score. The score is their mean.

        To first order, the variance of a score over test sets is that of the contributions divided by N. This
        default computes the jackknife's pseudo-values (Tukey, 1958) from N scores. Our metrics use a closed
        form: the score plus the influence of each example (Hampel, 1974).
        """
        count = len(targets)
        if count < 3:
            return np.full(count, self.score(targets, predictions))
        kept = ~np.eye(count, dtype=bool)
        without = np.array([self.score(targets[rows], predictions[rows]) for rows in kept])
        return about(self.score(targets, predictions), -(count - 1) * without)

    @property
    def sign(self) -> float:
        """The factor that makes larger scores better."""
        return 1.0 if self.higher else -1.0

    def better(self, score: float, other: float) -> bool:
        """Whether the first score is better than the second."""
        return self.sign * score > self.sign * other


def about(score: float, influence: Array) -> Array:
    """Each example's influence, shifted so that the mean over examples is the score."""
    contributions: Array = score + influence - influence.mean()
    return contributions
