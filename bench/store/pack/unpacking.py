"""Merges packs into a store: adds missing runs, keeps existing ones, and refuses contradictory results."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import pandas as pd

from tensorbench.machine.alive import owner
from tensorbench.machine.files import sha256
from tensorbench.records.pack_format import TRAVELS
from tensorbench.records.record import Point, Record, latest
from tensorbench.records.stored_plan import StoredSuite
from tensorbench.records.text import all_storable, run_name
from tensorbench.records.words import Artifact, RunKind, Status, Tag
from tensorbench.store.artifacts import hashes
from tensorbench.store.connect import connect, insisting
from tensorbench.store.merging import brings_more, merged_commits, merged_plan, refuse_contradictions
from tensorbench.store.source import Source
from tensorbench.store.store import Store

#: A function that is called after each trial, with the number of trials written so far and their total.
Listener = Callable[[int, int], None]


@dataclass(frozen=True)
class MergedExperiment:
    """The result of merging one experiment into a store."""

    name: str
    #: The number of trials that were written, and of trials that the store already had.
    written: int
    there: int


def merge(sources: Sequence[Source], uri: str, listener: Listener) -> list[MergedExperiment]:
    """Merges experiments into the store at `uri`, which is created if missing.

    Several sources may have results of one experiment. Finished trials in the store keep their results, and
    get a missing adapter. If the process is killed, the same call continues where it ended. Raises UserError
    and writes nothing if a trial has two scores, or if a suite was run in two ways.
    """
    connect(uri, create=True)
    parts: defaultdict[str, list[Source]] = defaultdict(list)
    for source in sources:
        parts[source.name].append(source)
    merges = {name: _Merge(own, Store.there(uri, name)) for name, own in parts.items()}
    total, done = sum(len(merging.coming) for merging in merges.values()), 0
    for name, merging in merges.items():
        for _ in merging.write(Store.create(uri, name)):
            done += 1
            listener(done, total)
    return [MergedExperiment(name, len(each.coming), each.there) for name, each in merges.items()]


class _Merge:
    """The merge of one experiment into a store. Raises UserError if results contradict each other."""

    def __init__(self, parts: Sequence[Source], store: Store | None) -> None:
        self._parts = parts
        every: list[Source] = [store, *parts] if store else list(parts)
        plans = [plan for part in every if (plan := part.plan()) is not None]
        self._plan = reduce(merged_plan, plans) if plans else None
        self._commits = merged_commits(every)
        chosen: dict[str, tuple[Source, Record]] = {}
        for part in every:
            records = latest(part.records())
            refuse_contradictions(part.name, {id_: run for id_, (_, run) in chosen.items()}, records.values())
            chosen |= {
                id_: (part, run) for id_, run in records.items() if brings_more((part, run), chosen.get(id_))
            }
        stored = latest(store.records()) if store else {}
        brought = [(part, run) for part, run in chosen.values() if part is not store]

        def is_same(run: Record) -> bool:
            # If the store has this very run, only its adapter may be missing. Other runs are copied whole,
            # so that adapter and predictions match.
            other = stored.get(run.trial_id)
            return other is not None and other.status == run.status and other.origin == run.origin

        #: Runs of which only the adapter is copied. Each item is a source, its run, and the same run in the
        #: store.
        self._bare = [(part, run, stored[run.trial_id]) for part, run in brought if is_same(run)]
        self.coming = [(part, run) for part, run in brought if not is_same(run)]
        self.there = len({run.trial_id for part in parts for run in part.records()}) - len(self.coming)

    def write(self, store: Store) -> Iterator[Record]:
        """Writes the runs that the store lacks. Yields each trial after it is written."""
        parent = self._suite(store)
        for part, run, same in self._bare:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / Artifact.ADAPTER
                part.copy(run, Artifact.ADAPTER, file)
                if hashes(same).get(Artifact.ADAPTER) == sha256(file):
                    store.send(Record(same.run_id, same.trial_id), Path(folder))
        for part in self._parts:
            yield from copied(part, [run for source, run in self.coming if source is part], store, parent)

    def _suite(self, store: Store) -> str:
        """Writes the suite's run and plan, if the store lacks them, and returns the run's id."""
        (run,), there = self._parts[0].records(RunKind.SUITE), store.records(RunKind.SUITE)
        copy = there[-1] if there else _begin(store, run, "")
        run_id = copy.run_id
        # The last run may have been left by an interrupted unpack.
        unended = there and there[-1].tag(Tag.ORIGIN) == run.origin and not there[-1].settled
        if store.plan() is None or unended:
            _fill(store, self._parts[0], run, copy, None)
        if self._plan is not None and store.plan() != self._plan:
            store.keep(run_id, Artifact.PLAN, self._plan)
        if store.commits() != self._commits:
            stored = store.content(copy, Artifact.SUITE, StoredSuite)
            stored = stored or self._parts[0].content(run, Artifact.SUITE, StoredSuite)
            stored = stored or StoredSuite(suite={})
            store.keep(run_id, Artifact.SUITE, stored.model_copy(update={"commits": self._commits}))
        return run_id


def copied(source: Source, runs: Sequence[Record], store: Store, parent: str) -> Iterator[Record]:
    """Copies runs of trials into a store, nested in the run `parent`. Yields each after it is written."""
    # Runs left by an interrupted copy. A duplicate would never count, so its trial gets a new run.
    unfilled = [run for run in store.records() if not run.settled and run.status != Status.DUPLICATE]
    begun = {run.tag(Tag.ORIGIN): run for run in unfilled}
    points = dict(list(source.curves().groupby("run_id")))
    for run in runs:
        copy = begun.get(run.origin) or _begin(store, run, parent)
        _fill(store, source, run, copy, points.get(run.run_id))
        yield run


@insisting
def _begin(store: Store, run: Record, parent: str) -> Record:
    """Creates a run in the store for a packed run, and returns its record.

    The run is marked as this process's, so that it is closed later if the process dies.
    """
    tags = dict(run.tags) | {Tag.ORIGIN: run.origin, Tag.OWNER: owner(), Tag.PARENT: parent}
    # MLflow sets this tag itself.
    tags.pop(Tag.NAME, None)
    if not parent:
        del tags[Tag.PARENT]
    made = store.client.create_run(
        store.experiment_id, start_time=run.started, tags=all_storable(tags), run_name=run_name(run.name)
    )
    return Record(made.info.run_id, artifacts=made.info.artifact_uri)


def _fill(store: Store, source: Source, run: Record, copy: Record, curves: pd.DataFrame | None) -> None:
    """Writes the content of a run to its copy, and after that marks the copy as ended.

    Writing it twice does no harm.
    """
    ended = run.started if run.ended is None else run.ended
    points = () if curves is None else curves.itertuples(index=False, name=None)
    record = replace(
        run,
        run_id=copy.run_id,
        artifacts=copy.artifacts,
        ended=ended,
        tags={},
        points=tuple(Point(key, value, ended, step) for _, key, step, value in points),
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in TRAVELS:
            source.copy(run, name, Path(folder) / name)
        store.send(record, Path(folder))
