"""Tasks: data in train, validation and test splits, their preparation for a backbone, and their metric."""

from __future__ import annotations

from tensorbench.tasks.data_tasks import resolve
from tensorbench.tasks.objective import Objective, objective
from tensorbench.tasks.pool import check_use, mean_words, most_train_examples, split_count, split_sizes
from tensorbench.tasks.preparing import data_key, prepare
from tensorbench.tasks.registered_tasks import TASKS
from tensorbench.tasks.splits import ImageSplit, PreparedData, Split, TextSplit
from tensorbench.tasks.task import DataSource, Examples, Task

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
    "most_train_examples",
    "objective",
    "prepare",
    "resolve",
    "split_count",
    "split_sizes",
]
