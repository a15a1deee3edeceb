"""Metrics: the score of predictions, and the contribution of each test example to it."""

from __future__ import annotations

from tensorbench.metrics.metric import KINDS, Array, Kind, Metric
from tensorbench.metrics.registered_metrics import METRICS, bounds, direction

__all__ = ["KINDS", "METRICS", "Array", "Kind", "Metric", "bounds", "direction"]
