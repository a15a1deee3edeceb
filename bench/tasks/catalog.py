"""The registered tasks. Adding one is a line here."""

from __future__ import annotations

from bench.tasks.declared import check_task
from methods.registry import Registry

#: Names to tasks. A task is a file of its own and its line here, or a plug-in's entry point.
TASKS = Registry(
    "task",
    {
        "movie-sentiment": "bench.tasks.sentiment:MOVIE",
        "amazon-sentiment": "bench.tasks.sentiment:AMAZON",
        "tweet-sentiment": "bench.tasks.sentiment:TWEETS",
        "textile": "bench.tasks.textile:TEXTILE",
        "land-cover": "bench.tasks.land_cover:LAND_COVER",
        "rating-pairs": "bench.tasks.rating_pairs:RATING_PAIRS",
        "digits": "bench.tasks.digits:DIGITS",
        "cola": "bench.tasks.glue:COLA",
        "mrpc": "bench.tasks.glue:MRPC",
        "sst2": "bench.tasks.glue:SST2",
        "stsb": "bench.tasks.glue:STSB",
        "qqp": "bench.tasks.glue:QQP",
        "mnli": "bench.tasks.glue:MNLI",
        "mnli-mm": "bench.tasks.glue:MNLI_MISMATCHED",
        "qnli": "bench.tasks.glue:QNLI",
        "rte": "bench.tasks.glue:RTE",
        "gsm8k": "bench.tasks.school_math:GSM8K",
        "metamath": "bench.tasks.school_math:METAMATH",
        "dtd": "bench.tasks.dtd:DTD",
        "dtd-merged": "bench.tasks.dtd:DTD_MERGED",
        "eurosat": "bench.tasks.eurosat:EUROSAT",
    },
    check_task,
)
