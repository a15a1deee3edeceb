"""Tasks: data with their splits, a preparation and a metric."""

from __future__ import annotations

from bench.tasks.base import DataSource, Examples, Metric, Task
from bench.tasks.data import check_sizes, data_key, prepare, score
from bench.tasks.splits import ImageSplit, PreparedData, Split, TextSplit
from methods.registry import Registry

__all__ = [
    "TASKS",
    "DataSource",
    "Examples",
    "ImageSplit",
    "Metric",
    "PreparedData",
    "Split",
    "Task",
    "TextSplit",
    "check_sizes",
    "data_key",
    "prepare",
    "score",
]

#: Names to tasks. A task is a file of its own and its line here, or a plug-in's entry point.
TASKS = Registry(
    "task",
    {
        "movie-sentiment": "bench.tasks.sentiment:MOVIE",
        "amazon-sentiment": "bench.tasks.sentiment:AMAZON",
        "tweet-sentiment": "bench.tasks.sentiment:TWEETS",
        "textile": "bench.tasks.textile:TEXTILE",
        "land-cover": "bench.tasks.land_cover:LAND_COVER",
        "digits": "bench.tasks.digits:DIGITS",
        "cola": "bench.tasks.glue:COLA",
        "mrpc": "bench.tasks.glue:MRPC",
        "dtd": "bench.tasks.dtd:DTD",
        "dtd-merged": "bench.tasks.dtd:DTD_MERGED",
        "eurosat": "bench.tasks.eurosat:EUROSAT",
    },
)
