"""Tasks: data with their splits, a preparation and a metric."""

from __future__ import annotations

from bench.tasks.base import DataSource, Examples, Task
from bench.tasks.catalog import TASKS
from bench.tasks.data import check_sizes, data_key, prepare
from bench.tasks.objective import Objective, objective
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
    "check_sizes",
    "data_key",
    "objective",
    "prepare",
]
