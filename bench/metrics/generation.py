"""Metrics of texts that a language model writes.

Targets are 1, an answer is 1 where it is right and else 0. Outputs are (N, 3): whether the answer is right,
the log-likelihood of the right one, and how many tokens that has.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.metrics.base import Array, Metric


class ExactMatch(Metric):
    """The share of written answers that are the right one, by the task's rule."""

    name = "exact_match"
    kinds = ("generation",)
    description = "share of written answers that are right"
    bounds = (0.0, 1.0)

    def score(self, targets: NDArray[Any], given: NDArray[Any]) -> float:
        return float((targets == given).mean())

    def contributions(self, targets: NDArray[Any], given: NDArray[Any]) -> Array:
        return (targets == given).astype(float)


class AnswerLikelihood(Metric):
    """The mean over examples of the log-likelihood that the right answer's tokens have, in nats a token."""

    name = "answer_likelihood"
    kinds = ("generation",)
    description = "mean log-likelihood of the right answer, in nats a token"
    reads = "outputs"
    in_units = True
    bounds = (-math.inf, 0.0)

    def score(self, targets: NDArray[Any], given: NDArray[Any]) -> float:
        return float(self.contributions(targets, given).mean())

    def contributions(self, targets: NDArray[Any], given: NDArray[Any]) -> Array:
        outputs = np.asarray(given, dtype=float)
        found: Array = outputs[:, 1] / outputs[:, 2]
        return found


EXACT_MATCH, ANSWER_LIKELIHOOD = ExactMatch(), AnswerLikelihood()
