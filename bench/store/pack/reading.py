"""Reads the experiments in a pack, without a store."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import ArrowException, compute
from pydantic import ValidationError

from tensorbench.methods.errors import shown
from tensorbench.methods.validation import explained
from tensorbench.records.pack_format import (
    CONFIGS_TABLE,
    CURVES_TABLE,
    EXPERIMENT,
    PREDICTIONS_TABLE,
    RUNS_TABLE,
    SPLITS_TABLE,
    PackedExperiment,
)
from tensorbench.records.record import Record, record_of
from tensorbench.records.stored_plan import StoredPlan
from tensorbench.records.words import Artifact, RunKind, Status, Tag
from tensorbench.store.pack import parquet
from tensorbench.store.pack.archive import Archive, PackError
from tensorbench.store.pack.clean import kept_tags
from tensorbench.store.pack.compact import CompactPredictions, Configs
from tensorbench.store.source import CURVE, Source

if TYPE_CHECKING:
    import pandas as pd

#: The statuses that packed runs may have. All of them have ended.
STATUSES = (Status.FINISHED, Status.FAILED, Status.KILLED)

#: The end of the year 9999, the last year that Python knows, in milliseconds since the epoch.
LATEST = 253_402_300_800_000

#: The number of runs that are converted to Python objects at a time.
BATCH = 256

#: The largest finite number in a pack, that of float32. Squares and sums of such numbers are finite.
LARGEST_VALUE = 3.5e38

#: MLflow's limits for the length of a tag and of a metric's key.
LONGEST_TAG, LONGEST_KEY = 8000, 250


def open_pack(path: Path) -> list[Packed]:
    """Opens the experiments of a pack, ordered by name.

    Raises UserError if the file is missing, incomplete, too large when unpacked, or of a later version, and
    if a file in it has a wrong hash or a path that leads outside.
    """
    archive = Archive(path)
    folders = sorted({name.rpartition("/artifacts/")[0] or name.rpartition("/")[0] for name in archive.names})
    experiments = [Packed(archive, folder) for folder in folders]
    names = [experiment.name for experiment in experiments]
    if len(set(names)) < len(names) or not names:
        raise PackError(f"the pack {path} is refused: it holds {', '.join(map(shown, names)) or 'nothing'}")
    return sorted(experiments, key=lambda experiment: experiment.name)


class Packed(Source):
    """One experiment of a pack. Raises PackError if its files are malformed."""

    def __init__(self, archive: Archive, folder: str) -> None:
        self.archive, self._folder = archive, folder
        try:
            experiment = PackedExperiment.model_validate_json(self._file(EXPERIMENT))
        except ValidationError as error:
            raise self._refused(EXPERIMENT, explained(error, PackedExperiment)[0]) from error
        self._name = experiment.name
        runs = self._table(RUNS_TABLE, parquet.RUNS)
        # Converted part by part, so that tags which are not ours are dropped early.
        self._records = [self._record(line) for part in runs.to_batches(BATCH) for line in part.to_pylist()]
        self._points = self._table(CURVES_TABLE, parquet.CURVES)
        if any(column.null_count for column in self._points.columns):
            raise self._refused(CURVES_TABLE, "a point lacks a part")
        largest = compute.max(
            compute.abs(self._points["value"].filter(compute.is_finite(self._points["value"])))
        )
        if (largest.as_py() or 0) > LARGEST_VALUE:
            raise self._refused(CURVES_TABLE, f"a point is at {largest.as_py():g}")
        if len({record.run_id for record in self._records}) < len(self._records):
            raise self._refused(RUNS_TABLE, "a run is in it twice")
        if len(suites := self.records(RunKind.SUITE)) != 1:
            raise self._refused(RUNS_TABLE, f"it has {len(suites)} runs of a suite; a pack has one")
        #: The configurations and predictions that are in tables. A pack of version 1 has no such tables.
        self._configs, self._predictions = self._compact_tables()

    def _compact_tables(self) -> tuple[Configs | None, CompactPredictions | None]:
        trials = {record.run_id for record in self.records()}
        there = [f"{self._folder}/{name}" in self.archive for name in (CONFIGS_TABLE, PREDICTIONS_TABLE)]
        configs = predictions = None
        if there[0]:
            table = self._table(CONFIGS_TABLE, parquet.CONFIGS)
            try:
                configs = Configs(table, trials)
            except (ValueError, ArrowException) as error:
                raise self._refused(CONFIGS_TABLE, str(error)) from error
        if there[1]:
            splits = self._table(SPLITS_TABLE, parquet.SPLITS)
            table = self._table(PREDICTIONS_TABLE, parquet.PREDICTIONS)
            try:
                predictions = CompactPredictions(table, splits, trials)
            except (ValueError, ArrowException) as error:
                raise self._refused(PREDICTIONS_TABLE, str(error)) from error
        return configs, predictions

    def _file(self, name: str) -> bytes:
        path = f"{self._folder}/{name}"
        if path not in self.archive:
            raise self._refused(name, "it is not there")
        return self.archive.read(path)

    def _table(self, name: str, columns: pa.Schema) -> pa.Table:
        content, packed = self._file(name), self.archive.packed_bytes(f"{self._folder}/{name}")
        try:
            table, excess = parquet.read(content, columns, packed, self.archive.slack)
        except (ValueError, ArrowException) as error:
            raise self._refused(name, str(error)) from error
        # All experiments of a pack are in memory together.
        self.archive.slack -= excess
        return table

    def _record(self, line: dict[str, Any]) -> Record:
        try:
            return _record(line)
        except (ValueError, TypeError) as error:
            raise self._refused(RUNS_TABLE, str(error)) from error

    def _refused(self, name: str, why: str) -> PackError:
        return PackError(f"the pack {self.archive.path} is refused: {self._folder}/{name}: {why}")

    @property
    def name(self) -> str:
        return self._name

    @property
    def where(self) -> str:
        # Reports show this, so leave out the machine's folders.
        return self.archive.path.name

    def records(self, kind: RunKind = RunKind.TRIAL) -> list[Record]:
        return [record for record in self._records if record.tag(Tag.KIND) == kind]

    def _path(self, record: Record, name: Artifact) -> str:
        return f"{self._folder}/artifacts/{record.run_id}/{name}"

    def has(self, record: Record, name: Artifact) -> bool:
        table = {Artifact.CONFIG: self._configs, Artifact.PREDICTIONS: self._predictions}.get(name)
        return self._path(record, name) in self.archive or (table is not None and record.run_id in table)

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
        path = self._path(record, name)
        if path not in self.archive:
            return self._read_compact(record, name)
        content = self.archive.read(path)
        if name == Artifact.PREDICTIONS:
            try:
                parquet.check_predictions(content, self.archive.packed_bytes(path))
            except (ValueError, ArrowException) as error:
                raise self._refused(f"artifacts/{record.run_id}/{name}", str(error)) from error
        return content

    def _read_compact(self, record: Record, name: Artifact) -> bytes | None:
        """The file of an artifact that is in a table. None if no table has it."""
        run_id = record.run_id
        if name == Artifact.CONFIG and self._configs is not None and run_id in self._configs:
            try:
                return self._configs.read(run_id)
            except ValueError as error:
                raise self._refused(CONFIGS_TABLE, str(error)) from error
        if name == Artifact.PREDICTIONS and self._predictions is not None and run_id in self._predictions:
            return self._predictions.read(run_id).file()
        return None

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
                if id_ is not None and id_ not in trials:
                    raise self._refused(
                        Artifact.PLAN, f"row {shown(row.method)}, seed {seed}: it has no trial {shown(id_)}"
                    )
        return plan

    def curves(self, key: str | None = None, runs: Collection[str] = ()) -> pd.DataFrame:
        points = self._points
        if key is not None:
            of_runs = compute.is_in(points["run_id"].cast("string"), pa.array(list(runs), "string"))
            points = points.filter(compute.and_(compute.equal(points["key"].cast("string"), key), of_runs))
        frame: pd.DataFrame = points.cast(parquet.CURVES).to_pandas()
        return frame.sort_values(list(CURVE[:3]), ignore_index=True)


def _record(line: dict[str, Any]) -> Record:
    """Makes the record of a row in the table of runs. Raises ValueError for a value that no store accepts."""
    run_id, status, started = line["run_id"], line["status"], line["started"]
    if not re.fullmatch("[0-9A-Za-z_-]{1,64}", run_id or ""):
        raise ValueError(f"run_id: {shown(run_id)} is none")
    if status not in STATUSES:
        raise ValueError(f"status of run {run_id}: {shown(status)}; accepted are {', '.join(STATUSES)}")
    if started is None:
        raise ValueError(f"started of run {run_id} is missing")
    for key in ("started", "ended"):
        if not 0 <= (line[key] or 0) < LATEST:
            raise ValueError(f"{key} of run {run_id}: {line[key]} is no time")
    tags, metrics = dict(line["tags"] or ()), dict(line["metrics"] or ())
    for key, value in tags.items():
        if value is None or len(value) > LONGEST_TAG or len(key) > LONGEST_KEY:
            raise ValueError(f"tag {shown(key)} of run {run_id}: {shown(value)} is longer than a store takes")
    for key, value in metrics.items():
        if value is None or len(key) > LONGEST_KEY or LARGEST_VALUE < abs(value) < math.inf:
            raise ValueError(f"metric {shown(key)} of run {run_id}: {shown(value)}")
    if tags.get(Tag.KIND) not in tuple(RunKind):
        raise ValueError(
            f"kind of run {run_id}: {shown(tags.get(Tag.KIND))}; accepted are {', '.join(RunKind)}"
        )
    if tags[Tag.KIND] == RunKind.TRIAL and not re.fullmatch("[0-9a-f]{16}", tags.get(Tag.TRIAL_ID, "")):
        raise ValueError(f"trial_id of run {run_id}: {shown(tags.get(Tag.TRIAL_ID))} is none")
    tags = kept_tags(tags)
    if line["parent"]:
        tags[Tag.PARENT] = line["parent"]
    return record_of(run_id, status, started, tags, metrics, ended=line["ended"])
