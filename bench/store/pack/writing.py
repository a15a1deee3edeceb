"""Writes packs. The same results give the same bytes, whichever store or pack they come from."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from tensorbench.machine.files import sha256_of, written_whole
from tensorbench.methods import UserError
from tensorbench.methods.errors import shown
from tensorbench.plan.suite_rows import NAME, NAME_RULE
from tensorbench.records.pack_format import (
    CURVES_BEGIN,
    CURVES_TABLE,
    ENDING,
    EXPERIMENT,
    MANIFEST,
    RUNS_TABLE,
    SCHEMA,
    TRAVELS,
    Manifest,
    Member,
    PackedExperiment,
)
from tensorbench.records.record import Record, latest
from tensorbench.records.words import Artifact, RunKind, Status, Tag
from tensorbench.store.artifacts import hashes
from tensorbench.store.pack import parquet
from tensorbench.store.pack.clean import clean_json, kept_tags
from tensorbench.store.pack.compact import Shared, rounded
from tensorbench.store.source import Source

#: The artifacts that are packed for each kind of run, apart from trained adapters.
OF_KIND = {
    RunKind.SUITE: (Artifact.PLAN, Artifact.SUITE),
    RunKind.TRIAL: (Artifact.CONFIG, Artifact.PREDICTIONS, Artifact.REDUNDANCY),
}

#: The prefix of the keys of curves by training step, which no table, figure or check reads.
TRAIN = CURVES_BEGIN[0]

#: The time stamp of every file in a pack. It is the earliest that the zip format allows.
NO_TIME = (1980, 1, 1, 0, 0, 0)

#: The number of runs that are read concurrently, and of runs that are in memory at a time.
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
            manifest = Manifest(schema=SCHEMA, adapters=adapters, members=dict(sorted(members.items())))
            _put(file, MANIFEST, _json(manifest.model_dump(mode="json", by_alias=True)))
    except OSError as error:
        raise UserError(f"the pack {out} cannot be written: {error}") from error
    done.bytes = out.stat().st_size
    return done


def _put(file: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, NO_TIME)
    # Readable by all, and marked as written on the same system everywhere.
    entry.create_system, entry.external_attr = 3, 0o100644 << 16
    file.writestr(entry, content, zipfile.ZIP_DEFLATED, 6)


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
        self._shared = Shared()

    def members(self) -> Iterator[tuple[str, bytes]]:
        """Yields the name and the content of every file in the experiment's folder of the pack.

        The files are sorted by name.
        """
        runs = iter(self._runs)
        with ThreadPoolExecutor(READERS) as pool:
            while batch := list(islice(runs, BATCH)):
                for run, artifacts in zip(batch, pool.map(self._artifacts, batch), strict=True):
                    for name, content in artifacts.items():
                        if not self._share(run, name, content):
                            yield f"artifacts/{run.origin}/{name}", content
        tables = {CURVES_TABLE: self._curves(), RUNS_TABLE: self._table(), **self._shared.tables()}
        experiment = {EXPERIMENT: _json(PackedExperiment(name=self._source.name).model_dump())}
        yield from sorted((tables | experiment).items())

    def _share(self, run: Record, name: Artifact, content: bytes) -> bool:
        """Puts an artifact into a shared table. Returns False, and puts nothing, if it fits no table."""
        if name == Artifact.CONFIG:
            return self._shared.take_config(run, content)
        if name != Artifact.PREDICTIONS or self._adapters:
            return False
        digest = self._shared.take_predictions(run, content)
        if digest is not None:
            self._changed.setdefault(run.origin, {})[name] = digest
        return digest is not None

    def _artifacts(self, run: Record) -> dict[Artifact, bytes]:
        names = set(OF_KIND[RunKind(run.tag(Tag.KIND))])
        if not run.tag(Tag.REDUNDANCY):
            names.discard(Artifact.REDUNDANCY)
        finished_trial = run.trial_id and run.status == Status.FINISHED
        if self._adapters and finished_trial:
            names.add(Artifact.ADAPTER)
        artifacts = {
            name: content for name in sorted(names) if (content := self._source.read(run, name)) is not None
        }
        self._done.without_adapter += Artifact.ADAPTER in names and Artifact.ADAPTER not in artifacts
        for name, content in artifacts.items():
            if name.endswith(".json"):
                artifacts[name] = self._cleaned(run, name, content)
        return artifacts

    def _cleaned(self, run: Record, name: Artifact, content: bytes) -> bytes:
        try:
            cleaned = clean_json(content)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name} of run {run.run_id} ({run.name}) is no JSON: {error}") from error
        if cleaned != content:
            self._changed.setdefault(run.origin, {})[name] = sha256_of(cleaned)
        return cleaned

    def _curves(self) -> bytes:
        frame = self._source.curves()
        origins = {run.run_id: run.origin for run in self._runs}
        frame = frame.assign(run_id=frame["run_id"].map(origins)).dropna(subset=["run_id"])
        frame = frame.sort_values(["run_id", "key", "step"])
        if not self._adapters:
            steps = frame["key"].str.startswith(TRAIN)
            frame["value"] = frame["value"].mask(steps, rounded(frame["value"]))
        return parquet.written(pa.Table.from_pandas(frame, parquet.CURVES, preserve_index=False))

    def _table(self) -> bytes:
        parents = {run.run_id: run.origin for run in self._runs}
        lines = [
            {
                "run_id": run.origin,
                "parent": "" if run is self._suite else parents.get(run.tag(Tag.PARENT), self._suite.origin),
                "status": str(run.status.ended),
                "started": run.started,
                "ended": run.started if run.ended is None else run.ended,
                "tags": list(self._tags(run).items()),
                # The last point of a curve is the metric's value.
                "metrics": sorted(kv for kv in run.metrics.items() if not kv[0].startswith(CURVES_BEGIN)),
            }
            for run in sorted(self._runs, key=lambda run: (run.started, run.origin))
        ]
        return parquet.written(pa.Table.from_pylist(lines, parquet.RUNS))

    def _tags(self, run: Record) -> dict[str, str]:
        tags = kept_tags(run.tags)
        if Tag.HASHES in tags:
            digests = hashes(run) | self._changed.get(run.origin, {})
            tags[Tag.HASHES] = json.dumps(
                {name: digests[name] for name in sorted(digests) if name in TRAVELS}
            )
        return tags
