"""Metrics of answers that a language model writes.

Targets are 1. Answers are 1 if correct, otherwise 0. Outputs (N, 3) are whether the written answer is
correct, the log-likelihood of the correct answer, and the number of tokens in the correct answer.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensorbench.records.metrics.metric import Array, Metric


class _Mean(Metric):
    """The base of metrics that are the mean of a score per example."""

    kinds = ("generation",)

    def score(self, targets: NDArray[Any], predictions: NDArray[Any]) -> float:
        return float(self.contributions(targets, predictions).mean())


class ExactMatch(_Mean):
    """The share of written answers that are correct by the task's rule."""

    name = "exact_match"
    description = "share of written answers that are right"
    bounds = (0.0, 1.0)

    def contributions(self, targets: NDArray[Any], predictions: NDArray[Any]) -> Array:
        return (targets == predictions).astype(float)

    def by_chance(self, targets: NDArray[Any]) -> float:
        # Targets do not contain the written answers. An answer to another example is rarely correct.
        return 0.0


class AnswerLikelihood(_Mean):
    """The mean over examples of the correct answer's log-likelihood per token, in nats."""

    name = "answer_likelihood"
    description = "mean log-likelihood of the right answer, in nats a token"
    reads = "outputs"
    in_units = True
    bounds = (-math.inf, 0.0)

    def contributions(self, targets: NDArray[Any], predictions: NDArray[Any]) -> Array:
        outputs = np.asarray(predictions, dtype=float)
        per_token: Array = outputs[:, 1] / outputs[:, 2]
        return per_token


class MeanScore(_Mean):
    """The mean of the examples' scores from 0 to 1. An example's first output is its score.

    It is the default metric of tables of results. For written answers, it is the share of correct ones.
    """

    name = "score"
    description = "mean of the examples' scores, each from 0 to 1"
    reads = "outputs"
    bounds = (0.0, 1.0)

    def contributions(self, targets: NDArray[Any], predictions: NDArray[Any]) -> Array:
        return np.asarray(predictions, dtype=float)[:, 0]


EXACT_MATCH, ANSWER_LIKELIHOOD, MEAN_SCORE = ExactMatch(), AnswerLikelihood(), MeanScore()
