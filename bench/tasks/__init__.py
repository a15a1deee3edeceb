"""Tasks: data in train, validation and test splits, their preparation for a backbone, and their metric."""

from __future__ import annotations

from bench.tasks.objective import Objective, objective
from bench.tasks.own_tasks import resolve
from bench.tasks.pool import check_use, mean_words, split_count, split_sizes
from bench.tasks.preparing import data_key, prepare
from bench.tasks.registered_tasks import TASKS
from bench.tasks.splits import ImageSplit, PreparedData, Split, TextSplit
from bench.tasks.task import DataSource, Examples, Task

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
    "mean_words",
    "objective",
    "prepare",
    "resolve",
    "split_count",
    "split_sizes",
]
