"""Metrics: what a score is of, which direction is better, and how it varies with the test examples."""

from __future__ import annotations

from bench.metrics.metric import KINDS, Array, Kind, Metric
from bench.metrics.registered_metrics import METRICS, bounds, direction

__all__ = ["KINDS", "METRICS", "Array", "Kind", "Metric", "bounds", "direction"]
