"""Metrics: the score of predictions, and the contribution of each test example to it."""

from __future__ import annotations

from tensorbench.records.metrics.metric import KINDS, Array, Kind, Metric
from tensorbench.records.metrics.registered_metrics import METRICS, bounds, direction

__all__ = ["KINDS", "METRICS", "Array", "Kind", "Metric", "bounds", "direction"]
