"""What a metric is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: What a task asks for: one class of several, any number of classes, a number, or a text to be written.
Kind = Literal["single label", "multi-label", "regression", "generation"]

KINDS: tuple[Kind, ...] = ("single label", "multi-label", "regression", "generation")


class Metric(ABC):
    """How answers are scored. To add one, write a subclass in a package of yours::

        class MeanError(Metric):
            name = "mean_error"
            kinds = ("regression",)
            higher = False
            in_units = True
            description = "mean absolute error"

            def score(self, targets, given):
                return float(abs(targets - given).mean())


        MEAN_ERROR = MeanError()

    and name the instance in its entry-point group `tensorbench.metrics`. Selection, tuning, searches,
    statistics and reports take it from there.

    What `score` and `contributions` get, for N examples: of a single label `targets` int64 (N,), answers
    int64 (N,) with -1 for none, outputs float (N, classes), the logits; of several labels `targets` and
    answers 0 or 1 (N, classes), outputs (N, classes), the logits; of a regression all three float (N,), in
    the units of the targets; of a generation what `bench.metrics.generation` says. `reads` says whether
    `given` are the answers or the outputs.
    """

    name: str
    #: The kinds of target that it scores.
    kinds: tuple[Kind, ...]
    description: str
    reads: Literal["answers", "outputs"] = "answers"
    #: Whether a larger score is the better one.
    higher: bool = True
    #: Whether scores have the units of the targets, so that those of two tasks have no common mean.
    #: Otherwise they are shown in percent.
    in_units: bool = False
    #: The least and the largest score that there can be. No interval is shown beyond them.
    bounds: tuple[float, float] = (-math.inf, math.inf)
    #: What a point of accuracy is in this metric; where it has units, the same share of the score itself.
    point: float = 1.0
    #: Whether it needs examples with and without each class.
    every_class: bool = False
    #: How many classes it needs; None: any number.
    classes: int | None = None

    @abstractmethod
    def score(self, targets: NDArray[Any], given: NDArray[Any]) -> float:
        """The score of N answers or outputs against their targets.

        Raises UserError where these targets have none.
        """

    def contributions(self, targets: NDArray[Any], given: NDArray[Any]) -> Array:
        """What each example (N,) contributes to the score, which is their mean.

        The variance of a score over test sets is, to the first order, that of the contributions over N. Here
        they are the jackknife's pseudo-values (Tukey, 1958) about the score, which takes N scores; metrics of
        ours have a closed form, the score plus the influence of each example on it (Hampel, 1974).
        """
        count = len(targets)
        if count < 3:
            return np.full(count, self.score(targets, given))
        kept = ~np.eye(count, dtype=bool)
        without = np.array([self.score(targets[rows], given[rows]) for rows in kept])
        return about(self.score(targets, given), -(count - 1) * without)

    @property
    def sign(self) -> float:
        """What a score is multiplied by so that more is better."""
        return 1.0 if self.higher else -1.0

    def better(self, one: float, other: float) -> bool:
        """Whether the first score is better than the second."""
        return self.sign * one > self.sign * other


def about(score: float, influence: Array) -> Array:
    """Contributions that vary as the influence does, and whose mean is the score."""
    found: Array = score + influence - influence.mean()
    return found
