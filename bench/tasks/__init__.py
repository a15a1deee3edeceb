"""Tasks: data with their splits, a preparation and a metric."""

from __future__ import annotations

from bench.tasks.base import DataSource, Examples, Task
from bench.tasks.catalog import TASKS
from bench.tasks.data import data_key, prepare
from bench.tasks.objective import Objective, objective
from bench.tasks.overlap import split_sizes
from bench.tasks.pool import check_use, split_count
from bench.tasks.splits import ImageSplit, PreparedData, Split, TextSplit

__all__ = [
    "TASKS",
    "DataSource",
    "Examples",
    "ImageSplit",
    "Objective",
    "PreparedData",
    "Split",
    "Task",
    "TextSplit",
    "check_use",
    "data_key",
    "objective",
    "prepare",
    "split_count",
    "split_sizes",
]
