"""What a report reads of runs one by one: results of searches, predictions, and histories of metrics."""

from __future__ import annotations

import io
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import ArrowException

from bench.store.records import Record
from bench.wire.found import AllocationResult, SearchResult
from bench.wire.words import Artifact, Kind
from reports.inference.intervals import Array
from reports.study import Experiment

#: How many artifacts or histories are asked for at once.
READERS = 8

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def ablations(experiment: Experiment) -> Iterator[tuple[Record, SearchResult | AllocationResult]]:
    """The parent run and the result of every search and allocation that has one.

    Raises UserError for a result that is not of its form.
    """
    source = experiment.source
    for record in source.records(Kind.SEARCH):
        if (search := source.content(record, Artifact.SEARCH, SearchResult)) is not None:
            yield record, search
    for record in source.records(Kind.ALLOCATION):
        if (allocation := source.content(record, Artifact.ALLOCATION, AllocationResult)) is not None:
            yield record, allocation


@dataclass(frozen=True)
class Predictions:
    """What one run answered: arrays (examples,), sorted by example. -1 is no answer."""

    examples: NDArray[np.int64]
    labels: NDArray[np.int64]
    answers: NDArray[np.int64]


def predictions(experiment: Experiment, trial_ids: Iterable[str]) -> dict[str, Predictions]:
    """Stored predictions by trial id, of those trials that have readable ones."""

    def one(trial_id: str) -> Predictions | None:
        content = experiment.source.read(experiment.records[trial_id], Artifact.PREDICTIONS)
        if content is None:
            return None
        try:
            table = pq.read_table(io.BytesIO(content), columns=["example", "label", "prediction"])
        except (OSError, ArrowException):
            return None
        example, label, answer = (_whole(table.column(name).to_numpy()) for name in table.column_names)
        order = np.argsort(example, kind="stable")
        return Predictions(example[order], label[order], answer[order])

    return _in_parallel(one, trial_ids)


def _whole(numbers: NDArray[Any]) -> NDArray[np.int64]:
    """As whole numbers; -1 for what is none, which is no example, label or answer."""
    return np.nan_to_num(numbers, nan=-1, posinf=-1, neginf=-1).astype(np.int64)


def histories(experiment: Experiment, trial_ids: Iterable[str], key: str) -> dict[str, Array]:
    """A metric's history by trial id: (points, 2) with step and value, by step."""

    def one(trial_id: str) -> Array | None:
        points = experiment.source.history(experiment.records[trial_id], key)
        return np.array(points, dtype=float) if points else None

    return _in_parallel(one, trial_ids)


def _in_parallel(one: Callable[[Key], Value | None], keys: Iterable[Key]) -> dict[Key, Value]:
    keys = list(keys)
    with ThreadPoolExecutor(READERS) as pool:
        found = zip(keys, pool.map(one, keys), strict=True)
        return {key: value for key, value in found if value is not None}
