"""Writes a trial into the store, while it runs and when it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tensorbench.machine.alive import owner
from tensorbench.machine.files import sha256_of
from tensorbench.plan.trial import Trial
from tensorbench.records.origin import Start, StoredConfig
from tensorbench.records.record import Point, Progress, Record
from tensorbench.records.stored_plan import Row
from tensorbench.records.text import all_storable, run_name
from tensorbench.records.words import PROVENANCE, YES, Artifact, RunKind, Status, Tag
from tensorbench.store.changes import plugin_sources
from tensorbench.store.connect import insisting, storing
from tensorbench.store.outbox import Outbox
from tensorbench.store.store import Store

#: Seconds between writes of a running trial's progress, since each write is a transaction.
PROGRESS_EVERY = 2.0


@insisting
def begin_trial(
    store: Store,
    trial: Trial,
    rows: list[Row],
    metric: str,
    parent: str,
    tags: Mapping[Tag, str] = {},
) -> TrialRun:
    """Opens the run of a trial, with the tags that are known before the trial starts.

    `rows` are the rows of the plan that contain the trial. `parent` is the id of the run in which the trial's
    run is nested. `tags` are added to the tags that every trial has. When the trial starts, `TrialRun.start`
    adds what only its worker knows, such as the hardware.
    """
    row = rows[0]
    studies = next((r.studies for r in rows if r.studies), None)
    place = studies and studies.trials[trial.seed]
    budgets = [
        {"budget": r.budget, "asked": r.asked, "ratio": r.ratio, "within": r.within} for r in rows if r.budget
    ]
    every_tag = {
        Tag.KIND: str(RunKind.TRIAL),
        Tag.TRIAL_ID: trial.id,
        Tag.OWNER: owner(),
        Tag.METHOD: row.method,
        Tag.FAMILY: trial.method["method"],
        Tag.BACKBONE: row.backbone,
        Tag.TASK: row.task,
        Tag.SEED: str(trial.seed),
        Tag.METRIC: metric,
        Tag.EVALUATED: trial.evaluate,
        Tag.RANKS: ",".join(map(str, row.ranks)),
        Tag.BUDGET: "; ".join(str(entry["budget"]) for entry in budgets) or "own",
        Tag.BUDGETS: json.dumps(budgets),
        Tag.BUDGET_MISSED: YES if any(entry["within"] is False for entry in budgets) else "no",
        Tag.PARENT: parent,
        **plugin_sources(trial),
        **({Tag.STUDY: str(place.study), Tag.POINT: str(place.point)} if place else {}),
        **tags,
    }
    name = f"{row.method} {every_tag[Tag.RANKS]}".rstrip() + f" · {row.task} · seed {trial.seed}"
    run = store.client.create_run(
        store.experiment.experiment_id, tags=all_storable(every_tag), run_name=run_name(name)
    )
    return TrialRun(store, run.info.run_id, metric, trial.id)


class TrialRun:
    """Writes the run of one trial: its start, its progress and its end.

    If the store does not accept data, they wait until `flush` succeeds. They wait in memory while the trial
    runs, and on disk after it has ended.
    """

    def __init__(self, store: Store, run_id: str, metric: str, trial_id: str) -> None:
        self.run_id = run_id
        self._store = store
        self._metric = metric
        #: The content that the store still lacks.
        self._pending = Record(run_id, trial_id)
        #: The sha256 of each artifact.
        self._hashes: dict[Artifact, str] = {}
        #: The record's folder on disk, after the trial has ended.
        self._kept: Path | None = None
        self._flushed = -PROGRESS_EVERY

    @property
    def ended(self) -> bool:
        """Whether the trial has ended: its record is on disk and will be sent from there."""
        return self._kept is not None

    def _add(self, tags: Mapping[str, str], points: Iterable[Point], files: Mapping[Artifact, bytes]) -> None:
        pending = self._pending
        self._hashes |= {name: sha256_of(content) for name, content in files.items()}
        self._pending = replace(
            pending,
            tags={**pending.tags, **tags},
            points=(*pending.points, *points),
            files={**pending.files, **files},
        )

    def start(
        self, config: dict[str, Any], provenance: Mapping[str, str], start: Start | None = None
    ) -> None:
        """Stores what is known when the trial starts.

        `config` is the trial with all of its fields. `provenance` comes from the worker. `start` has the
        suite's text, the versions of packages and the seeds.
        """
        tags = {f"{PROVENANCE}{key}": value for key, value in provenance.items()}
        if start is not None:
            tags[Tag.SUITE_HASH] = start.suite.sha256
        resolved = StoredConfig(trial=config, provenance=dict(provenance), start=start)
        text = json.dumps(resolved.model_dump(), indent=1)
        self._add(tags, (), {Artifact.CONFIG: text.encode()})
        self.flush()

    def progress(self, progress: Progress) -> None:
        self._add({}, progress.points(self._metric), {})
        if time.monotonic() >= self._flushed + PROGRESS_EVERY:
            self._flushed = time.monotonic()
            self.flush()

    def end(self, ending: Record) -> bool:
        """Writes the record to disk, after which nothing can be lost, and then sends it.

        Returns whether it was sent. Raises StoreError if the record cannot be written to disk, or if sending
        fails.
        """
        self._add(ending.tags, ending.points, ending.files)
        hashes = json.dumps(self._hashes, sort_keys=True)
        record = replace(
            self._pending,
            status=ending.status,
            ended=int(time.time() * 1000),
            tags={**self._pending.tags, Tag.HASHES: hashes, Tag.VERDICT: ending.verdict},
            metrics=ending.metrics,
        )
        with storing():
            self._kept = Outbox(self._store.outbox).keep(record)
        return self.flush()

    @insisting
    def kill(self) -> None:
        self._store.client.set_terminated(self.run_id, Status.KILLED)

    def put_aside(self) -> Path:
        """Puts aside the record on disk, so that it is never sent. Returns its new folder."""
        assert self._kept is not None
        return Outbox.refuse(self._kept)

    def flush(self) -> bool:
        """Sends the data that wait. Returns False without sending if the store is known to be unreachable.

        Raises StoreError if sending fails. The data are then kept for the next call.
        """
        if not self._store.online:
            return False
        if self._kept is not None:
            Outbox.send(self._kept, self._store.send)
            return True
        with TemporaryDirectory() as folder:
            for name, content in self._pending.files.items():
                (Path(folder) / name).write_bytes(content)
            self._store.send(self._pending, Path(folder))
        self._pending = Record(self.run_id, self._pending.trial_id)
        return True
