"""Reads the experiments in a pack, without a store."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Collection
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tensorbench.methods.errors import shown
from tensorbench.methods.validation import explained
from tensorbench.records import Wired
from tensorbench.records.measures import Measure
from tensorbench.records.metrics import METRICS, bounds
from tensorbench.records.pack_format import (
    ARRAYS,
    EXPERIMENT,
    LARGEST_VALUE,
    NUMBERS,
    RUNS,
    PackedExperiment,
    PackedRun,
)
from tensorbench.records.predictions import Predictions, tensors_in
from tensorbench.records.record import Record, record_of
from tensorbench.records.stored_plan import StoredPlan
from tensorbench.records.words import Artifact, RunKind, Tag
from tensorbench.store.pack.archive import Archive, PackError
from tensorbench.store.pack.clean import kept_tags
from tensorbench.store.source import CURVE, Source

if TYPE_CHECKING:
    import pandas as pd

Form = TypeVar("Form", bound=Wired)
Part = TypeVar("Part")

#: The largest accepted configuration, in bytes. Configurations are in memory one at a time.
MOST_CONFIG = 2 * 2**20
#: The limit for all configurations together, (a, b): a plus b for every byte of the pack's file.
MOST_CONFIGS = 64 * 2**20, 16
#: The limit for the points of all curves, (a, b): a plus one for every b bytes of the pack's file. A point
#: may take 300 bytes of memory. Packs of studies have one for every six bytes at most, and a value in float32
#: alone has three bytes that do not compress.
MOST_POINTS = 2**19, 3
#: By how much rounding may lead a score out of the bounds of its metric.
ROUNDING = 1e-6


def open_pack(path: Path) -> list[Packed]:
    """Opens the experiments of a pack, ordered by name.

    Raises UserError if the file is missing, incomplete, too large when unpacked, or of another version, and
    if a file in it has a wrong hash or a path that leads outside.
    """
    archive = Archive(path)
    folders = sorted({"/".join(name.split("/")[:2]) for name in archive.names})
    experiments = [Packed(archive, folder) for folder in folders]
    names = [experiment.name for experiment in experiments]
    if len(set(names)) < len(names) or not names:
        raise PackError(f"the pack {path} is refused: it holds {', '.join(map(shown, names)) or 'nothing'}")
    return sorted(experiments, key=lambda experiment: experiment.name)


class Packed(Source):
    """One experiment of a pack. Raises PackError if its files are malformed."""

    def __init__(self, archive: Archive, folder: str) -> None:
        self.archive, self._folder = archive, folder
        self._experiment = self._parsed(EXPERIMENT, self._file(EXPERIMENT), PackedExperiment)
        lines = enumerate(io.BytesIO(self._file(RUNS)), 1)
        runs = [self._parsed(f"{RUNS}, line {number}", line, PackedRun) for number, line in lines]
        ids = [run.run_id for run in runs]
        if any(one >= other for one, other in pairwise(ids)):
            raise self._refused(RUNS, "a run is in it twice, or its runs are not sorted")
        records = sorted(map(self._record, runs), key=lambda record: (record.started, record.run_id))
        self._records = {kind: [each for each in records if each.tag(Tag.KIND) == kind] for kind in RunKind}
        if (count := len(self._records[RunKind.SUITE])) != 1:
            raise self._refused(RUNS, f"it has {count} runs of a suite; a pack has one")
        self._divide(runs)

    def _divide(self, runs: list[PackedRun]) -> None:
        """Reads the pack's arrays, and computes which slice of them belongs to each run and each split.

        Raises PackError if arrays do not fit the runs and splits, or a value is out of range.
        """
        splits = self._experiment.splits
        #: The number of the split of each run with compact predictions.
        self._split = {run.run_id: run.split for run in runs if run.split is not None}
        if any(number >= len(splits) for number in self._split.values()):
            raise self._refused(RUNS, "predictions are of a split that is not there")
        lines = {run.run_id: run.config for run in runs}
        points = {(run.run_id, key): count for run in runs for key, count in sorted(run.curves.items())}
        size = self.archive.path.stat().st_size
        if (count := sum(points.values())) > (most := MOST_POINTS[0] + size // MOST_POINTS[1]):
            raise self._refused(RUNS, f"its curves have {count:,} points, more than {most:,}")
        examples = {number: split.examples for number, split in enumerate(splits)}
        answers = {run_id: examples[number] for run_id, number in self._split.items()}
        self._lines, self._points = _parts(lines), _parts(points)
        self._examples, self._answers = _parts(examples), _parts(answers)
        try:
            stored = tensors_in(self._file(NUMBERS))
        except ValueError as error:
            raise self._refused(NUMBERS, str(error)) from error
        arrays = {
            "config": self._array(stored, "config", lines),
            "step": self._array(stored, "step", points),
            "value": self._array(stored, "value", points),
            "example": self._array(stored, "example", examples),
            "label": self._array(stored, "label", examples),
            "prediction": self._array(stored, "prediction", answers),
            "log_probability": self._array(stored, "log_probability", answers),
        }
        self._arrays, values = arrays, arrays["value"]
        if (beyond := values[np.isfinite(values) & (np.abs(values) > LARGEST_VALUE)]).size:
            raise self._refused(NUMBERS, f"a point is at {beyond[0]:g}")
        classes = np.array([split.classes for split in splits], int)
        of_labels = np.repeat(classes, list(examples.values()))
        of_answers = np.repeat(classes[list(self._split.values())], list(answers.values()))
        beyond_lines = (arrays["config"] >= len(self._experiment.lines)).any()
        if not beyond_lines and arrays["config"].size:
            sizes = np.array([len(line) + 1 for line in self._experiment.lines])
            length = int(sizes[arrays["config"]].sum())
            if length > (most := MOST_CONFIGS[0] + MOST_CONFIGS[1] * size):
                raise self._refused(
                    RUNS, f"its configurations have {length:,} characters, more than {most:,}"
                )
        if beyond_lines or (arrays["label"] >= of_labels).any() or (arrays["prediction"] >= of_answers).any():
            raise self._refused(NUMBERS, "a line or a class is out of range")

    def _array(self, stored: dict[str, NDArray[Any]], name: str, lengths: dict[Any, int]) -> NDArray[Any]:
        dtype, planes, count = np.dtype(ARRAYS[name]), stored.get(name), sum(lengths.values())
        if planes is None or planes.dtype != np.uint8 or planes.shape != (dtype.itemsize, count):
            raise self._refused(NUMBERS, f"{name} has not the {count:,} numbers that runs or splits state")
        return np.ascontiguousarray(planes.T).view(dtype).reshape(count)

    def _parsed(self, name: str, content: bytes, form: type[Form]) -> Form:
        try:
            return form.model_validate_json(content)
        except ValidationError as error:
            raise self._refused(name, explained(error, form)[0]) from error

    def _file(self, name: str) -> bytes:
        path = f"{self._folder}/{name}"
        if path not in self.archive:
            raise self._refused(name, "it is not there")
        return self.archive.read(path)

    def _record(self, run: PackedRun) -> Record:
        kind, trial_id = run.tags.get(Tag.KIND), run.tags.get(Tag.TRIAL_ID, "")
        if kind not in tuple(RunKind):
            raise self._refused(
                RUNS, f"kind of run {run.run_id}: {shown(kind)}; accepted are {', '.join(RunKind)}"
            )
        if kind == RunKind.TRIAL and not re.fullmatch("[0-9a-f]{16}", trial_id):
            raise self._refused(RUNS, f"trial_id of run {run.run_id}: {shown(trial_id)} is none")
        metric, score = run.tags.get(Tag.METRIC, ""), run.metrics.get(Measure.SCORE, math.nan)
        if METRICS.is_built_in(metric) and math.isfinite(score):
            low, high = bounds(metric)
            if not low - ROUNDING <= score <= high + ROUNDING:
                raise self._refused(
                    RUNS, f"score of run {run.run_id}: {score:g}; {metric} is from {low:g} to {high:g}"
                )
        return record_of(
            run.run_id, run.status, run.started, kept_tags(run.tags), run.metrics, ended=run.ended
        )

    def _refused(self, name: str, why: str) -> PackError:
        return PackError(f"the pack {self.archive.path} is refused: {self._folder}/{name}: {why}")

    @property
    def name(self) -> str:
        return self._experiment.name

    @property
    def where(self) -> str:
        # Reports show this, so leave out the machine's folders.
        return self.archive.path.name

    def records(self, kind: RunKind = RunKind.TRIAL) -> list[Record]:
        return list(self._records[kind])

    def _path(self, record: Record, name: Artifact) -> str:
        return f"{self._folder}/artifacts/{record.run_id}/{name}"

    def has(self, record: Record, name: Artifact) -> bool:
        lines = self._lines[record.run_id]
        shared = {
            Artifact.CONFIG: lines.stop > lines.start,
            Artifact.PREDICTIONS: record.run_id in self._split,
        }
        return shared.get(name, False) or self._path(record, name) in self.archive

    def copy(self, record: Record, name: Artifact, target: Path) -> bool:
        # An adapter may exceed memory. Other artifacts are checked when they are read.
        if name != Artifact.ADAPTER:
            return super().copy(record, name, target)
        if there := self.has(record, name):
            self.archive.copy(self._path(record, name), target)
        return there

    def _broken(self, record: Record, name: Artifact, said: str) -> PackError:
        # Its reader has no run to delete.
        return self._refused(f"artifacts/{record.run_id}/{name}", said)

    def read(self, record: Record, name: Artifact) -> bytes | None:
        run_id, path = record.run_id, self._path(record, name)
        if path in self.archive:
            return self.archive.read(path)
        if not self.has(record, name):
            return None
        if name == Artifact.CONFIG:
            lines = self._experiment.lines
            numbers = self._arrays["config"][self._lines[run_id]].tolist()
            # A few numbers may repeat a long line many times.
            if (size := sum(len(lines[number]) + 1 for number in numbers)) > MOST_CONFIG:
                raise self._refused(RUNS, f"the configuration of run {run_id} has {size:,} characters")
            return "\n".join(lines[number] for number in numbers).encode()
        number, own = self._split[run_id], self._answers[run_id]
        split = self._examples[number]
        return Predictions(
            self._arrays["example"][split],
            self._arrays["label"][split].astype(np.int64),
            self._arrays["prediction"][own].astype(np.int64),
            classes=self._experiment.splits[number].classes,
            steps=self._arrays["log_probability"][own],
        ).file()

    def plan(self) -> StoredPlan | None:
        plan = super().plan()
        if plan is None:
            return None
        for trial in plan.trials:
            if not isinstance(trial.method.get("method"), str):
                raise self._refused(Artifact.PLAN, f"trial {shown(trial.id)} has no method")
        trials = plan.by_id()
        for row in plan.rows:
            if not row.trials:
                raise self._refused(Artifact.PLAN, f"row {shown(row.method)} has no seed")
            for seed, id_ in row.trials.items():
                if id_ not in trials:
                    raise self._refused(
                        Artifact.PLAN, f"row {shown(row.method)}, seed {seed}: it has no trial {shown(id_)}"
                    )
        return plan

    def curves(self, key: str | None = None, runs: Collection[str] = ()) -> pd.DataFrame:
        import pandas as pd

        chosen = {
            of: part for of, part in self._points.items() if key is None or (of[1] == key and of[0] in runs)
        }
        counts = [part.stop - part.start for part in chosen.values()]
        ids, keys = (np.array([of[place] for of in chosen], object).repeat(counts) for place in (0, 1))
        rows = np.concatenate([np.empty(0, int), *(np.r_[part] for part in chosen.values())])
        columns = ids, keys, self._arrays["step"][rows], self._arrays["value"][rows]
        return pd.DataFrame(dict(zip(CURVE, columns, strict=True)))


def _parts(lengths: dict[Part, int]) -> dict[Part, slice]:
    """Returns the slice of each part in an array that concatenates parts of these lengths."""
    places = pairwise(accumulate(lengths.values(), initial=0))
    return {part: slice(*place) for part, place in zip(lengths, places, strict=True)}
