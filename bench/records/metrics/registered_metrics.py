"""The registry of metrics. To add a metric of this project, add a line to `METRICS`."""

from __future__ import annotations

import math
from typing import Any

from tensorbench.methods.errors import UserError, shown
from tensorbench.methods.registry import Registry
from tensorbench.records.metrics.metric import KINDS, Metric


def _check(name: str, metric: Any) -> None:
    """Raises UserError unless `metric` is a `Metric` of this name with valid kinds and bounds."""
    where = f"metric '{name}'"
    if not isinstance(metric, Metric):
        raise UserError(f"{where}: should be an instance of a subclass of tensorbench.records.metrics.Metric")
    kinds = getattr(metric, "kinds", ())
    if not isinstance(kinds, tuple) or not kinds or not set(kinds) <= set(KINDS):
        raise UserError(f"{where}: kinds should be some of {', '.join(KINDS)}, got {shown(kinds)}")
    if getattr(metric, "name", None) != name:
        raise UserError(f"{where}: its `name` should be '{name}', got {shown(getattr(metric, 'name', None))}")
    match metric.bounds:
        case (int() | float() as least, int() | float() as largest) if least < largest:
            return
    raise UserError(f"{where}: bounds should be two numbers, the least first, got {shown(metric.bounds)}")


_CLASSES, _NUMBERS = "tensorbench.records.metrics.classification", "tensorbench.records.metrics.regression"

METRICS = Registry(
    "metric",
    {
        "accuracy": f"{_CLASSES}:ACCURACY",
        "balanced_accuracy": f"{_CLASSES}:BALANCED_ACCURACY",
        "f1": f"{_CLASSES}:F1",
        "f1_macro": f"{_CLASSES}:F1_MACRO",
        "f1_micro": f"{_CLASSES}:F1_MICRO",
        "matthews": f"{_CLASSES}:MATTHEWS",
        "auroc": f"{_CLASSES}:AUROC",
        "pearson": f"{_NUMBERS}:PEARSON",
        "spearman": f"{_NUMBERS}:SPEARMAN",
        "rmse": f"{_NUMBERS}:RMSE",
        "exact_match": "tensorbench.records.metrics.generation:EXACT_MATCH",
        "answer_likelihood": "tensorbench.records.metrics.generation:ANSWER_LIKELIHOOD",
        "score": "tensorbench.records.metrics.generation:MEAN_SCORE",
    },
    _check,
)


def direction(metric: str) -> float:
    """Returns 1 if larger scores of this metric are better, otherwise -1.

    `metric` is the name that a run stored. A run without a score stored an empty name, which gives 1. Raises
    UserError for a metric that is not installed.
    """
    return METRICS.get(metric).sign if metric else 1.0


def bounds(metric: str) -> tuple[float, float]:
    """Returns the smallest and the largest possible score of this metric.

    `metric` is the name that a run stored. A run without a score stored an empty name, which gives infinite
    bounds. Raises UserError for a metric that is not installed.
    """
    return METRICS.get(metric).bounds if metric else (-math.inf, math.inf)
