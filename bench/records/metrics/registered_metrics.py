"""The registry of metrics. To add a metric of this project, add a line to `METRICS`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tensorbench.methods.errors import UserError, shown
from tensorbench.methods.registry import Registry
from tensorbench.records.metrics.metric import KINDS, Metric


def _above_zero(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _ordered(bounds: Any) -> bool:
    match bounds:
        case (int() | float() as least, int() | float() as largest):
            return least < largest
    return False


#: What the declarations of a metric should be, in words and as a function.
_DECLARATIONS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "kinds": (
        f"some of {', '.join(KINDS)}",
        lambda kinds: isinstance(kinds, tuple) and kinds != () and all(kind in KINDS for kind in kinds),
    ),
    "description": ("a text", lambda text: isinstance(text, str) and text.strip() != ""),
    "reads": ("'answers' or 'outputs'", lambda reads: reads in ("answers", "outputs")),
    "bounds": ("two numbers, the least first", _ordered),
    "point": ("a number above 0", _above_zero),
    "classes": ("None, or a number of at least 2", lambda n: n is None or (isinstance(n, int) and n > 1)),
    **dict.fromkeys(
        ("higher", "in_units", "every_class", "varied"),
        ("True or False", lambda value: isinstance(value, bool)),
    ),
}


def _check(name: str, metric: Any) -> None:
    """Raises UserError unless `metric` is a `Metric` of this name with valid declarations."""
    where = f"metric '{name}'"
    if not isinstance(metric, Metric):
        raise UserError(f"{where}: should be an instance of a subclass of tensorbench.records.metrics.Metric")
    if getattr(metric, "name", None) != name:
        raise UserError(f"{where}: its `name` should be '{name}', got {shown(getattr(metric, 'name', None))}")
    for field, (accepted, holds) in _DECLARATIONS.items():
        if not holds(value := getattr(metric, field, None)):
            raise UserError(f"{where}: {field} should be {accepted}, got {shown(value)}")
    if metric.reads == "outputs" and "regression" in metric.kinds:
        raise UserError(f"{where}: reads should be 'answers' for regression, got 'outputs'")


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
