"""Metrics of numbers. Scores are computed by scipy and scikit-learn."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tensorbench.records.metrics.metric import Array, Metric, about


class _Correlation(Metric):
    """A correlation of answers with targets. It is 0 if the answers or the targets are constant."""

    kinds = ("regression",)
    bounds = (-1.0, 1.0)
    varied = True
    #: As for Matthews' correlation, two points matter as much as a point of accuracy.
    point = 2.0
    #: The function of scipy.stats that computes it.
    function: ClassVar[str]

    def score(self, targets: NDArray[Any], predictions: NDArray[Any]) -> float:
        if np.ptp(targets) == 0 or np.ptp(predictions) == 0:
            return 0.0
        from scipy import stats

        correlation = getattr(stats, self.function)
        return float(correlation(np.asarray(targets, float), np.asarray(predictions, float)).statistic)

    def contributions(self, targets: NDArray[Any], predictions: NDArray[Any]) -> Array:
        score = self.score(targets, predictions)
        if np.ptp(targets) == 0 or np.ptp(predictions) == 0:
            return np.zeros(len(targets))
        return about(
            score, self._influence(np.asarray(targets, float), np.asarray(predictions, float), score)
        )

    def by_chance(self, targets: NDArray[Any]) -> float:
        return 0.0

    @abstractmethod
    def _influence(self, targets: Array, predictions: Array, score: float) -> Array: ...


class Pearson(_Correlation):
    """The linear correlation of answers with targets."""

    name = "pearson"
    description = "Pearson's correlation"
    function = "pearsonr"

    def _influence(self, targets: Array, predictions: Array, score: float) -> Array:
        x, y = ((values - values.mean()) / values.std() for values in (targets, predictions))
        influence: Array = x * y - score * (x**2 + y**2) / 2
        return influence


class Spearman(_Correlation):
    """The correlation of the ranks of answers with those of targets. Equal values get their mean rank."""

    name = "spearman"
    description = "Spearman's correlation of ranks"
    function = "spearmanr"

    def _influence(self, targets: Array, predictions: Array, score: float) -> Array:
        """Returns the influence of each example: its direct influence, plus that on other examples' ranks."""
        x, y = (_placed(values) for values in (targets, predictions))
        of_x, of_y = float(np.mean(x**2)), float(np.mean(y**2))
        together = x * y + _mean_above(targets, y) + _mean_above(predictions, x)
        alone = [
            (own**2 + 2 * _mean_above(values, own)) / variance
            for own, values, variance in ((x, targets, of_x), (y, predictions, of_y))
        ]
        influence: Array = together / np.sqrt(of_x * of_y) - score * (alone[0] + alone[1]) / 2
        return influence


def _placed(values: Array) -> Array:
    """Returns for each value the share of values below it, minus one half. Equal values count half."""
    from scipy.stats import rankdata

    placed: Array = (rankdata(values) - 0.5) / len(values) - 0.5
    return placed


def _mean_above(values: Array, other: Array) -> Array:
    """Returns for each of N values the sum of `other` over all larger values, divided by N.

    `other[i]` belongs to `values[i]`. Equal values, and the value itself, count half.
    """
    _, place = np.unique(values, return_inverse=True)
    sums = np.bincount(place, other)
    above = sums.sum() - np.cumsum(sums) + sums / 2
    mean_above: Array = above[place] / len(values)
    return mean_above


class Rmse(Metric):
    """The root mean squared error, in the unit of the targets."""

    name = "rmse"
    kinds = ("regression",)
    description = "root mean squared error, in the units of the targets"
    higher = False
    in_units = True
    bounds = (0.0, math.inf)

    def score(self, targets: NDArray[Any], predictions: NDArray[Any]) -> float:
        from sklearn.metrics import root_mean_squared_error

        return float(root_mean_squared_error(targets, predictions))

    def contributions(self, targets: NDArray[Any], predictions: NDArray[Any]) -> Array:
        squares = (np.asarray(targets, float) - np.asarray(predictions, float)) ** 2
        score = float(np.sqrt(squares.mean()))
        return np.zeros(len(squares)) if score == 0 else about(score, squares / (2 * score))

    def by_chance(self, targets: NDArray[Any]) -> float:
        # The root of the expected square, to which the RMSE of a random order comes close if there are many
        # targets.
        return math.sqrt(2) * float(np.std(targets))


PEARSON, SPEARMAN, RMSE = Pearson(), Spearman(), Rmse()
