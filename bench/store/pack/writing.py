"""Writes packs. The same results give the same bytes, whichever store or pack they come from."""

from __future__ import annotations

import json
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError
from safetensors.numpy import save

from tensorbench.machine.files import sha256_of, written_whole
from tensorbench.methods import UserError
from tensorbench.methods.errors import shown
from tensorbench.methods.validation import explained
from tensorbench.plan.suite_rows import NAME, NAME_RULE
from tensorbench.records.metrics import METRICS
from tensorbench.records.pack_format import (
    ARRAYS,
    CURVES_BEGIN,
    ENDING,
    EXPERIMENT,
    MANIFEST,
    NUMBERS,
    RUNS,
    SCHEMA,
    TRAVELS,
    Manifest,
    Member,
    PackedExperiment,
    PackedRun,
    PackedSplit,
)
from tensorbench.records.predictions import Predictions, compact, read_predictions
from tensorbench.records.record import Record, latest
from tensorbench.records.words import Artifact, RunKind, Status, Tag
from tensorbench.store.artifacts import hashes
from tensorbench.store.pack.clean import clean_json, kept_tags
from tensorbench.store.source import Source

#: The artifacts that are packed for each kind of run, apart from trained adapters.
OF_KIND = {
    RunKind.SUITE: (Artifact.PLAN, Artifact.SUITE),
    RunKind.TRIAL: (Artifact.CONFIG, Artifact.PREDICTIONS),
}

#: The prefix of the keys of curves by training step. `verify --rerun` allows for their rounding.
TRAIN = CURVES_BEGIN[0]

#: The time stamp of every file in a pack. It is the earliest that the zip format allows.
NO_TIME = (1980, 1, 1, 0, 0, 0)

#: The number of binary digits to which losses of training steps are rounded, as many as float16 has.
DIGITS = 11

#: The number of runs that are read concurrently, and of runs that are in memory at a time, without adapters.
READERS, BATCH = 8, 64


@dataclass
class WrittenPack:
    """Describes a pack that was written."""

    path: Path
    bytes: int = 0
    #: The number of trials, by experiment.
    trials: dict[str, int] = field(default_factory=dict)
    #: The number of running trials, which were left out.
    running: int = 0
    #: The number of finished trials without a stored adapter, if adapters were requested.
    without_adapter: int = 0


def write_pack(
    sources: Iterable[Source], out: Path, *, adapters: bool = False, force: bool = False
) -> WrittenPack:
    """Writes experiments with distinct names into the file `out`.

    `adapters` includes trained adapters, logits, and training losses without rounding. `force` replaces an
    existing file. Raises UserError and writes nothing if the file exists or its name has the wrong ending, if
    an experiment is empty, or if an artifact changed since it was stored.
    """
    if not out.name.endswith(ENDING):
        raise UserError(f"--out {out}: the name of a pack ends with {ENDING}")
    if out.exists() and not force:
        raise UserError(f"{out} is there already; name another file, or replace it with --force")
    done = WrittenPack(out)
    members: dict[str, Member] = {}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(out) as unfinished, zipfile.ZipFile(unfinished, "w") as file:
            for number, source in enumerate(sorted(sources, key=lambda source: source.name)):
                for name, content in _Content(source, adapters, done).members():
                    path = f"experiments/{number:04d}/{name}"
                    members[path] = Member(sha256=sha256_of(content), bytes=len(content))
                    _put(file, path, content)
            manifest = Manifest(schema=SCHEMA, members=dict(sorted(members.items())))
            _put(file, MANIFEST, _json(manifest.model_dump(mode="json", by_alias=True)))
    except OSError as error:
        raise UserError(f"the pack {out} cannot be written: {error}") from error
    done.bytes = out.stat().st_size
    return done


def _put(file: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, NO_TIME)
    # Readable by all, and marked as written on the same system everywhere.
    entry.create_system, entry.external_attr = 3, 0o100644 << 16
    file.writestr(entry, content, zipfile.ZIP_DEFLATED, 9)


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1).encode()


class _Content:
    """An experiment's part of a pack. Raises UserError if the experiment is empty or has an invalid name."""

    def __init__(self, source: Source, adapters: bool, done: WrittenPack) -> None:
        self._source, self._adapters, self._done = source, adapters, done
        # In MLflow an experiment may be renamed to anything.
        if not NAME.fullmatch(source.name):
            raise UserError(
                f"experiment {shown(source.name)}: the name of what is packed has {NAME_RULE}; rename it in "
                "MLflow"
            )
        suites = reversed(source.records(RunKind.SUITE))
        suite = next((run for run in suites if source.read(run, Artifact.PLAN) is not None), None)
        if suite is None:
            raise UserError(f"experiment '{source.name}' in {source.where} holds no suite of this harness")
        trials = list(latest(source.records()).values())
        ended = [trial for trial in trials if trial.status != Status.RUNNING]
        if not ended:
            raise UserError(
                f"experiment '{source.name}' has no trial that has ended: there is nothing to pack"
            )
        done.running += len(trials) - len(ended)
        done.trials[source.name] = len(ended)
        self._suite, self._runs = suite, sorted([suite, *ended], key=lambda run: run.origin)
        #: The SHA-256 of artifacts that differ in the pack from those in the store, by `Record.origin`.
        self._changed: dict[str, dict[str, str]] = {}
        #: The number of each distinct configuration line, and the number of each split with the first
        #: predictions on it. The key of a split is its number of classes, example ids and labels.
        self._lines: dict[str, int] = {}
        self._splits: dict[tuple[int, bytes, bytes], tuple[int, Predictions]] = {}
        #: By `Record.origin` of a run: the numbers of its configuration's lines, and the number of its split
        #: with its answers and log-probabilities.
        self._configs: dict[str, list[int]] = {}
        self._predictions: dict[str, tuple[int, Any, Any]] = {}

    def members(self) -> Iterator[tuple[str, bytes]]:
        """Yields the name and the content of every file in the experiment's folder of the pack."""
        runs = iter(self._runs)
        with ThreadPoolExecutor(READERS) as pool:
            while batch := list(islice(runs, BATCH)):
                for run, artifacts in zip(batch, pool.map(self._artifacts, batch), strict=True):
                    if (adapter := self._adapter(run)) is not None:
                        yield f"artifacts/{run.origin}/{Artifact.ADAPTER}", adapter
                    for name, content in artifacts.items():
                        if not self._share(run, name, content):
                            yield f"artifacts/{run.origin}/{name}", content
        points = self._points()
        yield NUMBERS, self._numbers(points)
        experiment = PackedExperiment(
            name=self._source.name,
            splits=tuple(
                PackedSplit(classes=first.classes, examples=len(first.example))
                for _, first in self._splits.values()
            ),
            lines=tuple(self._lines),
        )
        yield EXPERIMENT, _json(experiment.model_dump())
        counts: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for run_id, key, count in (
            points.groupby(["run_id", "key"], as_index=False).size().itertuples(index=False)
        ):
            counts[run_id][key] = count
        yield RUNS, b"".join(self._line(run, counts[run.origin]) for run in self._runs)

    def _share(self, run: Record, name: Artifact, content: bytes) -> bool:
        """Adds an artifact to the data that runs share. Returns False if it must be packed by itself."""
        if name == Artifact.CONFIG:
            lines = content.decode().split("\n")
            self._configs[run.origin] = [self._lines.setdefault(line, len(self._lines)) for line in lines]
            return True
        if name != Artifact.PREDICTIONS or self._adapters or not _answers_suffice(run.tag(Tag.METRIC)):
            return False
        try:
            predictions = compact(read_predictions(content))
        except ValueError:
            return False
        if predictions is None:
            return False
        split = predictions.classes, predictions.example.tobytes(), predictions.label.tobytes()
        number, _ = self._splits.setdefault(split, (len(self._splits), predictions))
        # As small as in the file, since all runs are in memory together.
        answers = predictions.prediction.astype(ARRAYS["prediction"])
        self._predictions[run.origin] = number, answers, predictions.steps
        self._changed.setdefault(run.origin, {})[name] = sha256_of(predictions.file())
        return True

    def _adapter(self, run: Record) -> bytes | None:
        """Returns the adapter of a run, if it is packed. Adapters may be large, so one is read at a time."""
        if not self._adapters or not run.trial_id or run.status != Status.FINISHED:
            return None
        adapter = self._source.read(run, Artifact.ADAPTER)
        self._done.without_adapter += adapter is None
        return adapter

    def _artifacts(self, run: Record) -> dict[Artifact, bytes]:
        names = set(OF_KIND[RunKind(run.tag(Tag.KIND))])
        artifacts = {
            name: content for name in sorted(names) if (content := self._source.read(run, name)) is not None
        }
        for name, content in artifacts.items():
            if not name.endswith(".json"):
                continue
            try:
                artifacts[name] = clean_json(content)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{name} of run {run.run_id} ({run.name}) is no JSON: {error}") from error
            if artifacts[name] != content:
                self._changed.setdefault(run.origin, {})[name] = sha256_of(artifacts[name])
        return artifacts

    def _points(self) -> pd.DataFrame:
        """Returns the points of the runs' curves, sorted by run, key and step."""
        frame = self._source.curves()
        origins = {run.run_id: run.origin for run in self._runs}
        frame = frame.assign(run_id=frame["run_id"].map(origins)).dropna(subset=["run_id"])
        frame = frame.sort_values(["run_id", "key", "step"], ignore_index=True)
        if not self._adapters:
            steps = frame["key"].str.startswith(TRAIN)
            fractions, exponents = np.frexp(frame["value"])
            rounded = np.ldexp(np.round(fractions * 2**DIGITS) / 2**DIGITS, exponents)
            frame["value"] = frame["value"].mask(steps, rounded)
        return frame

    def _numbers(self, points: pd.DataFrame) -> bytes:
        splits = [first for _, first in self._splits.values()]
        answered = [each for _, each in sorted(self._predictions.items())]
        values: dict[str, Iterable[Any]] = {
            "config": [numbers for _, numbers in sorted(self._configs.items())],
            "step": [points["step"]],
            "value": [points["value"]],
            "example": [split.example for split in splits],
            "label": [split.label for split in splits],
            "prediction": [answers for _, answers, _ in answered],
            "log_probability": [steps for _, _, steps in answered],
        }
        arrays = {}
        for name, parts in values.items():
            dtype = np.dtype(ARRAYS[name])
            numbers = np.concatenate([np.empty(0, dtype), *(np.asarray(part, dtype) for part in parts)])
            # The first byte of all numbers, then the second, and so on.
            arrays[name] = np.ascontiguousarray(numbers.view(np.uint8).reshape(-1, dtype.itemsize).T)
        return save(arrays)

    def _line(self, run: Record, curves: dict[str, int]) -> bytes:
        split, tags = self._predictions.get(run.origin), kept_tags(run.tags)
        if Tag.HASHES in tags:
            digests = hashes(run) | self._changed.get(run.origin, {})
            tags[Tag.HASHES] = json.dumps(
                {name: digests[name] for name in sorted(digests) if name in TRAVELS}
            )
        try:
            line = PackedRun(
                run_id=run.origin,
                status=run.status.ended,
                started=run.started,
                ended=run.started if run.ended is None else run.ended,
                tags=tags,
                # The last point of a curve is the metric's value.
                metrics=dict(sorted(kv for kv in run.metrics.items() if not kv[0].startswith(CURVES_BEGIN))),
                config=len(self._configs.get(run.origin, ())),
                curves=curves,
                split=None if split is None else split[0],
            )
        except ValidationError as error:
            said = explained(error, PackedRun)[0]
            raise UserError(f"run {run.run_id} ({run.name}) cannot be packed: {said}") from error
        return line.model_dump_json(exclude_defaults=True).encode() + b"\n"


def _answers_suffice(metric: str) -> bool:
    """Whether a metric needs only one answered class per example. False if the metric is not installed."""
    try:
        scored = METRICS.get(metric)
    except UserError:
        return False
    return "single label" in scored.kinds and scored.reads == "answers"
