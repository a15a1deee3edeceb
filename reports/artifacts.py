"""What a report reads of runs one by one: results of searches, and predictions."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import ArrowException

from bench.metrics import Metric
from bench.store.records import Record
from bench.wire.found import FOUND, AllocationResult, SearchResult
from bench.wire.predictions import numbered
from bench.wire.words import Artifact
from reports.study import Experiment

#: How many artifacts are asked for at once.
READERS = 8

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def ablations(experiment: Experiment) -> Iterator[tuple[Record, SearchResult | AllocationResult]]:
    """The parent run and the result of every search and allocation that has one.

    Raises UserError for a result that is not of its form.
    """
    source = experiment.source
    for kind, (name, form) in FOUND.items():
        for record in source.records(kind):
            if (found := source.content(record, name, form)) is not None:
                yield record, found


@dataclass(frozen=True)
class Predictions:
    """What one run answered, sorted by example: (examples,), or (examples, classes) where that is what
    metrics get (see `bench.metrics.Metric`). Of whole numbers -1 is no answer.
    """

    examples: NDArray[np.int64]
    labels: NDArray[Any]
    #: Answers or outputs.
    given: NDArray[Any]


def predictions(experiment: Experiment, trial_ids: Iterable[str], metric: Metric) -> dict[str, Predictions]:
    """What the metric gets of stored predictions, by trial id, of those trials that have readable ones."""
    what = "prediction" if metric.reads == "answers" else "logit"
    whole = {"example", *(() if metric.kinds == ("regression",) else ("label", "prediction"))}

    def one(trial_id: str) -> Predictions | None:
        content = experiment.source.read(experiment.records[trial_id], Artifact.PREDICTIONS)
        if content is None:
            return None
        try:
            have = pq.read_schema(io.BytesIO(content)).names
            columns = {name: numbered(have, name) for name in ("example", "label", what)}
            table = pq.read_table(
                io.BytesIO(content), columns=[name for some in columns.values() for name in some]
            )
            example, label, given = (_array(table, some, name in whole) for name, some in columns.items())
        except (OSError, ArrowException, ValueError):
            return None
        order = np.argsort(example, kind="stable")
        return Predictions(example[order], label[order], given[order])

    return _in_parallel(one, trial_ids)


def _array(table: Any, columns: Sequence[str], whole: bool) -> NDArray[Any]:
    """One column (examples,), or several that are one a class (examples, classes).

    Of whole numbers -1 stands for what is none, which is no example, label or answer.
    """
    found = np.stack([table.column(name).to_numpy() for name in columns], axis=1)
    if whole:
        found = np.nan_to_num(found, nan=-1, posinf=-1, neginf=-1).astype(np.int64)
    return found[:, 0] if not re.search(r"_\d+$", columns[0]) else found


def _in_parallel(one: Callable[[Key], Value | None], keys: Iterable[Key]) -> dict[Key, Value]:
    keys = list(keys)
    with ThreadPoolExecutor(READERS) as pool:
        found = zip(keys, pool.map(one, keys), strict=True)
        return {key: value for key, value in found if value is not None}
