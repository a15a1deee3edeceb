"""The interface of a metric."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: The kinds of target that a task can have: one class, any number of classes, a number, or a written answer.
Kind = Literal["single label", "multi-label", "regression", "generation"]

KINDS: tuple[Kind, ...] = ("single label", "multi-label", "regression", "generation")

#: The number of random orders over which `Metric.by_chance` takes the mean.
ORDERS = 20


class Metric(ABC):
    """Scores predictions. To add a metric, write a subclass in a package of your own::

        class MeanError(Metric):
            name = "mean_error"
            kinds = ("regression",)
            higher = False
            in_units = True
            description = "mean absolute error"

            def score(self, targets, predictions):
                return float(abs(targets - predictions).mean())


        MEAN_ERROR = MeanError()

    and name the instance in the package's entry-point group "tensorbench.metrics". Then every part of the
    benchmark can use it.

    `score` and `contributions` get N examples. Their `predictions` are answers or outputs, as `reads` says:

    - Single label: `targets` are int64 (N,). Answers are int64 (N,), with -1 for no answer. Outputs are
      logits, float (N, classes).
    - Multi-label: `targets` and answers are 0 or 1, (N, classes). Outputs are logits, float (N, classes).
    - Regression: `targets` and answers are float (N,), in the unit of the targets. Outputs cannot be read.
    - Generation: see `tensorbench.records.metrics.generation`.
    """

    name: str
    #: The kinds of target that the metric can score.
    kinds: tuple[Kind, ...]
    description: str
    #: Whether the metric scores final answers, or the backbone's outputs, such as logits.
    reads: Literal["answers", "outputs"] = "answers"
    #: Whether larger scores are better.
    higher: bool = True
    #: Whether scores have the unit of the targets, so that scores of two tasks cannot be averaged.
    #: Otherwise scores are shown in percent.
    in_units: bool = False
    #: The smallest and the largest possible score, which also limit intervals.
    bounds: tuple[float, float] = (-math.inf, math.inf)
    #: The difference that matters as much as one point of accuracy. It is in points or, if `in_units`, in
    #: percent of the score.
    point: float = 1.0
    #: Whether the metric needs examples with and without each class.
    every_class: bool = False
    #: Whether the metric needs targets that differ.
    varied: bool = False
    #: The number of classes that the metric needs. None: any number.
    classes: int | None = None

    @abstractmethod
    def score(self, targets: NDArray[Any], predictions: NDArray[Any]) -> float:
        """Returns the score of N predictions. Raises UserError if it is undefined for these targets."""

    def contributions(self, targets: NDArray[Any], predictions: NDArray[Any]) -> Array:
        """Returns each example's contribution (N,) to the score. The score is their mean.

        To first order, the variance of the score over test sets is the variance of the contributions divided
        by N. This default computes the jackknife's pseudo-values (Tukey, 1958), with N further scores.
        The metrics of this package use a closed form: the score plus the influence of each example (Hampel,
        1974).
        """
        count = len(targets)
        if count < 3:
            return np.full(count, self.score(targets, predictions))
        # One row at a time: an array of all choices of rows would take N² bytes.
        without = np.array(
            [self.score(np.delete(targets, row, 0), np.delete(predictions, row, 0)) for row in range(count)]
        )
        return about(self.score(targets, predictions), -(count - 1) * without)

    def by_chance(self, targets: NDArray[Any]) -> float | None:
        """Returns the expected score if the N targets, in random order, are the answers.

        It depends on no trial. This default is the mean over `ORDERS` orders. The metrics of this package use
        a closed form. None if the metric reads outputs, which cannot be made from targets.
        """
        if self.reads == "outputs":
            return None
        orders = np.random.default_rng(0)
        return float(np.mean([self.score(targets, orders.permutation(targets)) for _ in range(ORDERS)]))

    @property
    def sign(self) -> float:
        """1 if larger scores are better, otherwise -1."""
        return 1.0 if self.higher else -1.0

    def better(self, score: float, other: float) -> bool:
        """Whether the first score is better than the second."""
        return self.sign * score > self.sign * other


def about(score: float, influence: Array) -> Array:
    """Returns the influence (N,) of each example, shifted so that the mean over examples is the score."""
    contributions: Array = score + influence - influence.mean()
    return contributions
