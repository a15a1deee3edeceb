"""Merges packs into a store: adds missing runs, keeps existing ones, and refuses contradictory results."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from tensorbench.machine.alive import owner
from tensorbench.machine.files import sha256
from tensorbench.records.pack_format import TRAVELS
from tensorbench.records.record import Point, Record, latest
from tensorbench.records.text import all_storable, run_name
from tensorbench.records.words import Artifact, RunKind, Status, Tag
from tensorbench.store.artifacts import hashes
from tensorbench.store.connect import connect, insisting
from tensorbench.store.merging import Joined
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


def merge(
    sources: Sequence[Source], uri: str, listener: Listener = lambda done, of: None
) -> list[MergedExperiment]:
    """Merges experiments with distinct names into the store at `uri`, which is created if missing.

    Finished trials in the store keep their results, and get a missing adapter from the pack. If the process
    is killed, the same call continues where it ended. Raises UserError and writes nothing if a trial has
    another score in the store, or if the same suite was run differently there.
    """
    connect(uri, create=True)
    merges = [_Merge(source, Store.there(uri, source.name)) for source in sources]
    total, done = sum(len(merging.coming) for merging in merges), 0
    for merging in merges:
        for _ in merging.write(Store.create(uri, merging.source.name)):
            done += 1
            listener(done, total)
    return [MergedExperiment(merging.source.name, len(merging.coming), merging.there) for merging in merges]


class _Merge:
    """The merge of one experiment into a store. Raises UserError if it contradicts the store."""

    def __init__(self, source: Source, store: Store | None) -> None:
        self.source = source
        both = Joined([store, source] if store else [source])
        stored = latest(store.records()) if store else {}
        brought = [run for run in both.records() if both.part(run) is source]

        def is_same(run: Record) -> bool:
            # If the store has this very run, only its adapter may be missing. Other runs are copied whole,
            # so that adapter and predictions match.
            other = stored.get(run.trial_id)
            return other is not None and other.status == run.status and other.origin == run.origin

        #: Runs of which only the adapter is copied, each with the same run in the store.
        self._bare = [(run, stored[run.trial_id]) for run in brought if is_same(run)]
        self.coming = [run for run in brought if not is_same(run)]
        self.there = len(latest(source.records())) - len(self.coming)
        #: The merged plan. None if the store has no plan yet.
        self._plan = both.plan() if store and store.plan() else None

    def write(self, store: Store) -> Iterator[Record]:
        """Writes the runs that the store lacks. Yields each trial after it is written."""
        stored = store.records()
        # Runs left by an interrupted unpack. A duplicate would never count, so its trial gets a new run.
        unfilled = [run for run in stored if not run.settled and run.status != Status.DUPLICATE]
        begun = {run.tag(Tag.ORIGIN): run.run_id for run in unfilled}
        parents = self._parents(store)
        points = dict(list(self.source.curves().groupby("run_id")))
        for run, same in self._bare:
            _add_adapter(store, self.source, run, same)
        for run in self.coming:
            parent = parents.get(run.tag(Tag.PARENT), parents[""])
            run_id = begun.get(run.origin) or _begin(store, run, parent)
            _fill(store, self.source, run, run_id, points.get(run.run_id))
            yield run

    def _parents(self, store: Store) -> dict[str, str]:
        """Writes the suite's run, if the store lacks it.

        Returns the id in the store of each such run, by its id in the pack. The key "" is the suite's run.
        """
        ids: dict[str, str] = {}
        for run in self.source.records(RunKind.SUITE):
            there = store.records(RunKind.SUITE)
            run_id = there[-1].run_id if there else _begin(store, run, "")
            if self._plan is None or _unended(there, run):
                _fill(store, self.source, run, run_id, None)
            if self._plan is not None and store.plan() != self._plan:
                store.keep(run_id, Artifact.PLAN, self._plan)
            ids[run.run_id] = ids[""] = run_id
        return ids


def _unended(there: Sequence[Record], run: Record) -> bool:
    """Whether the last of these runs was left by an interrupted unpack of `run`."""
    return bool(there) and there[-1].tag(Tag.ORIGIN) == run.origin and not there[-1].settled


@insisting
def _begin(store: Store, run: Record, parent: str) -> str:
    """Creates a run in the store for a packed run, and returns its id.

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
    run_id: str = made.info.run_id
    return run_id


def _fill(store: Store, source: Source, run: Record, run_id: str, curves: pd.DataFrame | None) -> None:
    """Writes the content of a run, and after that marks the run as ended. Writing it twice does no harm."""
    ended = run.started if run.ended is None else run.ended
    points = () if curves is None else curves.itertuples(index=False, name=None)
    record = replace(
        run,
        run_id=run_id,
        ended=ended,
        tags={},
        points=tuple(Point(key, value, ended, step) for _, key, step, value in points),
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in TRAVELS:
            source.copy(run, name, Path(folder) / name)
        store.send(record, Path(folder))


def _add_adapter(store: Store, source: Source, run: Record, stored: Record) -> None:
    """Adds the adapter that a stored run lacks, if the adapter has the hash that is stored for it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / Artifact.ADAPTER
        source.copy(run, Artifact.ADAPTER, file)
        if hashes(stored).get(Artifact.ADAPTER) == sha256(file):
            store.send(Record(stored.run_id, stored.trial_id), Path(folder))
