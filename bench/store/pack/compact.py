"""A pack's tables of configurations and predictions, in which trials share equal content.

Equal lines of configurations are stored once, and so are the examples and labels of a split.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tensorbench.methods import UserError
from tensorbench.methods.errors import shown
from tensorbench.metrics import METRICS
from tensorbench.records.pack_format import CONFIGS_TABLE, PREDICTIONS_TABLE, SPLITS_TABLE
from tensorbench.records.predictions import MOST_CLASSES, Compact, compact
from tensorbench.records.record import Record
from tensorbench.records.words import Tag
from tensorbench.store.pack import parquet
from tensorbench.store.pack.archive import JSON_BYTES, JSON_MARKS, marks

#: The number of binary digits to which losses of training steps are rounded, as many as float16 has.
DIGITS = 11


def rounded(losses: Any) -> Any:
    """Rounds numbers to `DIGITS` significant binary digits."""
    fractions, exponents = np.frexp(losses)
    return np.ldexp(np.round(fractions * 2**DIGITS) / 2**DIGITS, exponents)


# --- writing ---


class Shared:
    """Collects the configurations and predictions of an experiment's trials for the tables of a pack."""

    def __init__(self) -> None:
        self._configs: dict[str, list[str]] = {}
        #: Every line of a configuration, with itself as the key, so that equal lines are in memory once.
        self._lines: dict[str, str] = {}
        #: Maps a split (number of classes, example ids, labels) to its number and its first predictions.
        self._splits: dict[tuple[int, bytes, bytes], tuple[int, Compact]] = {}
        #: For each run the split's number, the answers, and the log-probabilities in steps.
        self._predictions: dict[str, tuple[int, Any, Any]] = {}

    def take_config(self, run: Record, content: bytes) -> bool:
        """Takes a configuration. Returns False, and takes nothing, if the text is not UTF-8."""
        try:
            lines = content.decode().split("\n")
        except UnicodeDecodeError:
            return False
        self._configs[run.origin] = [self._lines.setdefault(line, line) for line in lines]
        return True

    def take_predictions(self, run: Record, content: bytes) -> str | None:
        """Takes predictions in the compact form and returns their digest.

        Returns None, and takes nothing, if they have no compact form or if the metric needs the logits.
        """
        predictions = compact(content) if _answers_suffice(run.tag(Tag.METRIC)) else None
        if predictions is None:
            return None
        split = (predictions.classes, predictions.example.tobytes(), predictions.label.tobytes())
        number, _ = self._splits.setdefault(split, (len(self._splits), predictions))
        answers = predictions.prediction.astype(np.int16)
        self._predictions[run.origin] = number, answers, predictions.steps.astype(np.int32)
        return predictions.digest

    def tables(self) -> dict[str, bytes]:
        """Returns the content of each table's file, by the file's name. Tables without rows are left out."""
        splits = [split for _, split in self._splits.values()]
        trials = sorted(self._predictions.items(), key=lambda trial: (trial[1][0], trial[0]))
        columns: dict[str, tuple[pa.Schema, list[Sequence[Any]]]] = {
            CONFIGS_TABLE: (parquet.CONFIGS, [list(self._configs), list(self._configs.values())]),
            PREDICTIONS_TABLE: (
                parquet.PREDICTIONS,
                [
                    [run for run, _ in trials],
                    [number for _, (number, _, _) in trials],
                    [answers for _, (_, answers, _) in trials],
                    [steps for _, (_, _, steps) in trials],
                ],
            ),
            SPLITS_TABLE: (
                parquet.SPLITS,
                [
                    [split.classes for split in splits],
                    [split.example for split in splits],
                    [split.label for split in splits],
                ],
            ),
        }
        return {
            name: parquet.written(pa.table(dict(zip(schema.names, values, strict=True)), schema))
            for name, (schema, values) in columns.items()
            if values[0]
        }


def _answers_suffice(metric: str) -> bool:
    """Whether a metric needs only one answered class per example. False if the metric is not installed."""
    try:
        scored = METRICS.get(metric)
    except UserError:
        return False
    return "single label" in scored.kinds and scored.reads == "answers"


# --- reading ---


class Configs:
    """Reads the table of configurations of a pack. `runs` are the ids of the pack's trials.

    Raises ValueError if the table is incomplete or contains other runs.
    """

    def __init__(self, table: pa.Table, runs: Collection[str]) -> None:
        _refuse_missing(table)
        self._rows = _rows_of(table, runs)
        self._starts, lines = _lists(table["lines"])
        self._numbers, self._lines = lines.indices.to_numpy(), lines.dictionary.to_pylist()
        self._lengths = np.array([len(line.encode()) + 1 for line in self._lines], dtype=np.int64)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._rows

    def read(self, run_id: str) -> bytes:
        """Returns the content of a run's `config.json`. Raises ValueError if it needs too much memory."""
        row = self._rows[run_id]
        numbers = self._numbers[self._starts[row] : self._starts[row + 1]]
        if (size := int(self._lengths[numbers].sum())) > JSON_BYTES[0]:
            raise ValueError(f"the configuration of run {run_id} has {size:,} bytes")
        content = "\n".join(self._lines[number] for number in numbers).encode()
        if (count := marks(content)) > JSON_MARKS[0]:
            raise ValueError(f"the configuration of run {run_id} has {count:,} marks")
        return content


class CompactPredictions:
    """Reads the tables of predictions and splits of a pack. `runs` are the ids of the pack's trials.

    Raises ValueError if a table is incomplete or contains other runs, and if predictions do not fit their
    split.
    """

    def __init__(self, table: pa.Table, splits: pa.Table, runs: Collection[str]) -> None:
        for part in (table, splits):
            _refuse_missing(part)
        self._rows = _rows_of(table, runs)
        self._split = table["split"].to_numpy()
        self._classes = splits["classes"].to_numpy()
        (examples, self._example), (labels, self._label) = map(_numbers, (splits["example"], splits["label"]))
        (starts, self._answers), (places, self._steps) = map(_numbers, map(table.column, (2, 3)))
        self._examples, self._starts = examples, starts
        if ((self._split < 0) | (self._split >= len(splits))).any():
            raise ValueError("predictions are of a split that is not there")
        sizes = np.diff(examples)
        own = np.diff(starts)
        if (examples != labels).any() or (starts != places).any() or (own != sizes[self._split]).any():
            raise ValueError("predictions are not as many as the examples of their split")
        classes = np.repeat(self._classes[self._split], own)
        beyond = (self._answers < 0) | (self._answers >= classes) | (self._steps > 0)
        outside = (self._label < 0) | (self._label >= np.repeat(self._classes, sizes))
        if beyond.any() or outside.any() or ((self._classes < 2) | (self._classes > MOST_CLASSES)).any():
            raise ValueError("a class or a log-probability is out of range")

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._rows

    def read(self, run_id: str) -> Compact:
        """Returns the predictions of a run."""
        row = self._rows[run_id]
        split = self._split[row]
        examples = slice(self._examples[split], self._examples[split + 1])
        own = slice(self._starts[row], self._starts[row + 1])
        return Compact(
            int(self._classes[split]),
            self._example[examples],
            self._label[examples],
            self._answers[own],
            self._steps[own],
        )


def _refuse_missing(table: pa.Table) -> None:
    for column in table.columns:
        if column.null_count or any(_inner(chunk).null_count for chunk in column.chunks):
            raise ValueError("a row lacks a part")


def _inner(values: pa.Array) -> pa.Array:
    return values.values if isinstance(values, pa.ListArray) else values


def _rows_of(table: pa.Table, runs: Collection[str]) -> dict[str, int]:
    """The index of each run's row. Raises ValueError if a run is repeated or not in `runs`."""
    rows: dict[str, int] = {}
    for number, run_id in enumerate(table["run_id"].cast("string").to_pylist()):
        if run_id in rows or run_id not in runs:
            raise ValueError(f"run {shown(run_id)} is in it twice, or is no trial of the pack")
        rows[run_id] = number
    return rows


def _lists(column: pa.ChunkedArray) -> tuple[Any, pa.Array]:
    """Returns the offsets of a column's lists, and the values of all lists one after the other.

    The last offset is the end of the last list.
    """
    lists = pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)
    return lists.offsets.to_numpy() - lists.offsets[0].as_py(), lists.flatten()


def _numbers(column: pa.ChunkedArray) -> tuple[Any, Any]:
    starts, values = _lists(column)
    return starts, values.to_numpy()
