"""Writes trials into the store while they run and when they end."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.plan.rows import Row
from bench.plan.trial import Trial
from bench.process.alive import owner
from bench.process.files import sha256_of
from bench.store.connect import insisting, storing
from bench.store.outbox import Letter, Outbox
from bench.store.plugins import plugin_sources
from bench.store.store import Store
from bench.wire.measures import Measure, validation_key
from bench.wire.start import Start, StoredConfig
from bench.wire.text import all_storable, run_name
from bench.wire.trial import Ending, Progress
from bench.wire.words import PROVENANCE, YES, Artifact, EndStatus, Kind, Status, Tag

#: What MLflow takes as a part of a parameter's name.
PLAIN_KEY = re.compile(r"[\w.\- ]{1,80}")

#: Seconds between two writes of a running trial's progress: each write is a transaction.
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
    """Opens the run of a trial, nested under the run `parent`, and stores what is known before it starts.

    `rows` are those of the plan that the trial stands in. `tags` are added to those that every trial has.
    `TrialRun.start` follows when it starts: only then its worker tells where it runs.
    """
    row = rows[0]
    budgets = [
        {"budget": r.budget, "asked": r.asked, "ratio": r.ratio, "within": r.within} for r in rows if r.budget
    ]
    known = {
        Tag.KIND: str(Kind.TRIAL),
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
        **tags,
    }
    name = f"{row.method} {known[Tag.RANKS]}".rstrip() + f" · {row.task} · seed {trial.seed}"
    run = store.client.create_run(
        store.experiment.experiment_id, tags=all_storable(known), run_name=run_name(name)
    )
    return TrialRun(store, run.info.run_id, metric, trial.id)


#: MLflow's status of a trial that ended so; the others are killed for MLflow, and tags tell how they ended.
ENDED: dict[str, EndStatus] = {"finished": Status.FINISHED, "failed": Status.FAILED}


class TrialRun:
    """Writes one trial.

    What the store does not take is kept until `flush` finds the store back: in memory while the trial runs,
    and on disk once it has ended.
    """

    def __init__(self, store: Store, run_id: str, metric: str, trial_id: str) -> None:
        self.run_id = run_id
        self._store = store
        self._metric = metric
        self._letter = Letter(store.experiment.experiment_id, run_id, trial_id)
        #: The sha256 of each artifact.
        self._hashes: dict[Artifact, str] = {}
        #: Where the whole record lies once the trial has ended.
        self._kept: Path | None = None
        self._told = -PROGRESS_EVERY

    @property
    def ended(self) -> bool:
        """Whether the whole record is on disk, from where it is sent now or later."""
        return self._kept is not None

    def start(
        self, config: dict[str, Any], provenance: Mapping[str, str], start: Start | None = None
    ) -> None:
        """Stores the resolved configuration, the provenance that the worker tells, and what was started."""
        self._letter.params |= flat(config)
        self._letter.tags |= {f"{PROVENANCE}{key}": value for key, value in provenance.items()}
        if start is not None:
            self._letter.tags[Tag.SUITE_HASH] = start.suite.sha256
            if start.lock is not None:
                self._letter.tags[Tag.LOCK_HASH] = start.lock.sha256
        resolved = StoredConfig(trial=config, provenance=dict(provenance), start=start)
        text = json.dumps(resolved.model_dump(exclude_none=True), indent=1)
        self._letter.texts[Artifact.CONFIG] = text
        self._hashes[Artifact.CONFIG] = sha256_of(text.encode())
        self.flush()

    def progress(self, progress: Progress) -> None:
        values: list[tuple[str, float, int]] = [
            (Measure.TRAIN_LOSS, loss, step) for step, loss in progress.losses
        ]
        if progress.validation_metric is not None and progress.validation_loss is not None:
            values += [
                (validation_key(self._metric), progress.validation_metric, progress.epoch),
                (Measure.VALIDATION_LOSS, progress.validation_loss, progress.epoch),
            ]
        now = _now()
        self._letter.metrics += [(key, value, now, step) for key, value, step in values]
        if time.monotonic() >= self._told + PROGRESS_EVERY:
            self._told = time.monotonic()
            self.flush()

    def end(self, ending: Ending) -> bool:
        """Puts the whole record on disk, then sends it as `flush` does: from here on nothing is lost."""
        letter, now = self._letter, _now()
        letter.metrics += [(key, value, now, 0) for key, value in ending.metrics.items()]
        letter.tags |= {str(tag): value for tag, value in ending.tags.items()}
        if ending.reason:
            letter.tags |= {Tag.FAILURE: ending.reason, Tag.FAILURE_MESSAGE: ending.message}
        if ending.status == "pruned":
            letter.tags[Tag.PRUNED] = YES
        self._hashes |= {name: sha256_of(content) for name, content in ending.files.items()}
        letter.tags[Tag.HASHES] = json.dumps(self._hashes, sort_keys=True)
        letter.status = ENDED.get(ending.status, Status.KILLED)
        letter.ended = now
        with storing():
            self._kept = Outbox(self._store.outbox).keep(letter, ending.files)
        return self.flush()

    @insisting
    def kill(self) -> None:
        self._store.client.set_terminated(self.run_id, Status.KILLED)

    def put_aside(self) -> Path:
        """Puts the whole record where nobody sends it any more; returns where it lies."""
        assert self._kept is not None
        return Outbox.refuse(self._kept)

    def flush(self) -> bool:
        """Sends what the store still lacks, unless the store is known to be away; returns whether it did."""
        if not self._store.online:
            return False
        if self._kept is None:
            self._store.send(self._letter)
        else:
            Outbox.send(self._kept, self._store.send)
        return True


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """The parameters of a run: a trial's configuration, with dots in the keys of what is nested.

    A mapping with keys that are no name of a parameter, classes of a user's say, is one value.
    """
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and all(map(PLAIN_KEY.fullmatch, value)):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = str(value)
    return found


def _now() -> int:
    return int(time.time() * 1000)
