"""What a store holds, experiment by experiment, and all that it holds of one trial."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from bench.store.connect import BROKEN_STORE, shown_uri
from bench.store.records import Record, latest
from bench.store.store import Store
from bench.store.trained import find_trial
from bench.wire.measures import Measure
from bench.wire.plan import PlannedRow, StoredPlan, StudyTrial
from bench.wire.words import Artifact, Kind, Status, Tag
from methods import UserError
from reports.provenance import Provenance, provenance_of


@dataclass(frozen=True)
class Contents:
    """An experiment in numbers: how the trials of its suite's latest plan stand, each counted once."""

    experiment: str
    #: Planned trials that have finished, have failed, run, and all others. What waits for its tuning is among
    #: the missing.
    complete: int
    failed: int
    running: int
    missing: int
    #: How many studies are planned, and of how many every trial has ended; None where there are none.
    studies: int | None
    studies_complete: int | None
    #: Stored trials that are no row's of the latest plan: of tuning and search, and of what the suite was.
    others: int
    #: When the latest run of any kind began, in milliseconds since the epoch.
    latest: int


def contents(uri: str) -> list[Contents]:
    """Every experiment of a store that holds a suite, by name.

    Raises UserError where there is no store, or it cannot be read.
    """
    try:
        counted = (_counted(store) for store in Store.every(uri))
        return [found for found in counted if found is not None]
    except BROKEN_STORE as error:
        raise UserError(shown_uri(f"{uri} cannot be read: {error}")) from error


def _counted(store: Store) -> Contents | None:
    suites, records = store.records(Kind.SUITE), latest(store.records())
    if not (suites or records):
        return None
    plan = store.plan()
    # Waiting seeds of a row have no trial yet, and each is one to come.
    seeds = [(i, *seed) for i, row in enumerate(plan.rows if plan else ()) for seed in row.trials.items()]
    planned = {id_ or (row, seed) for row, seed, id_ in seeds}
    states = Counter(records[id_].status for id_ in planned if id_ in records)
    complete, failed, running = (states[s] for s in (Status.FINISHED, Status.FAILED, Status.RUNNING))
    ended = {id_ for id_ in planned if id_ in records and records[id_].settled}
    studies, studies_complete = _studies(plan.rows if plan else (), ended)
    return Contents(
        experiment=store.name,
        studies=studies,
        studies_complete=studies_complete,
        complete=complete,
        failed=failed,
        running=running,
        missing=len(planned) - complete - failed - running,
        others=len(records.keys() - planned),
        latest=max(record.started for record in (*suites, *records.values())),
    )


def _studies(rows: Sequence[PlannedRow], ended: Set[Any]) -> tuple[int | None, int | None]:
    """The planned studies, and those of which every trial of every row has ended."""
    by_row = [(row.studies, row.trials) for row in rows if row.studies]
    if not by_row:
        return None, None
    planned = {trial.study for studies, _ in by_row for trial in studies.trials.values()}
    unfinished = {
        studies.trials[seed].study
        for studies, trials in by_row
        for seed, id_ in trials.items()
        if id_ not in ended
    }
    return len(planned), len(planned - unfinished)


@dataclass(frozen=True)
class TrialContents:
    """All that a store holds of one trial."""

    experiment: str
    #: The run that counts.
    record: Record
    #: Its row in the suite's latest plan; None of a trial of a search, say.
    row: PlannedRow | None
    #: Every budget that it stands under: `budget`, `asked`, `ratio`, `within`.
    budgets: tuple[Mapping[str, Any], ...]
    #: Its resolved configuration, as MLflow has it: `method.rank`, `recipe.lr`.
    configuration: Mapping[str, str]
    #: Names of artifacts, with their bytes.
    artifacts: Mapping[str, int | None]
    #: Suite, lock, commit, packages, seeds and hardware behind it.
    provenance: Provenance
    #: Where Python stood when it failed; empty unless it did.
    traceback: str
    #: Its other runs, oldest first: failures that were tried again, say.
    others: tuple[Record, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON takes it."""
        record = self.record
        return {
            "trial_id": record.trial_id,
            "run_id": record.run_id,
            "experiment": self.experiment,
            "status": str(record.status),
            "started": record.started,
            "tags": dict(record.tags),
            "metrics": dict(record.metrics),
            "row": self.row
            and self.row.model_dump(mode="json", exclude={"trials": True, "studies": {"trials"}}),
            "study": self.place and self.place.model_dump(),
            "budgets": list(self.budgets),
            "configuration": dict(self.configuration),
            "artifacts": dict(self.artifacts),
            "artifacts_at": record.artifacts,
            "provenance": to_jsonable_python(self.provenance),
            "traceback": self.traceback,
            "other_runs": {other.run_id: str(other.status) for other in self.others},
        }

    @property
    def place(self) -> StudyTrial | None:
        """Its place in the studies of its row; None where there are none."""
        studies = self.row.studies if self.row else None
        return studies.trials.get(int(self.record.tag(Tag.SEED))) if studies else None

    def measure(self, measure: Measure) -> float | None:
        """What was measured, as stored; None where nothing was."""
        return self.record.measure(measure)


def trial_contents(uri: str, trial: str) -> TrialContents:
    """What is stored of the trial whose trial id or run id begins with `trial`.

    Raises UserError where there is none or several, and for a store that cannot be read.
    """
    try:
        store, record = find_trial(uri, trial)
        trace = store.artifact(record, Artifact.TRACEBACK) if record.status == Status.FAILED else None
        configuration, artifacts = store.details(record)
        return TrialContents(
            experiment=store.name,
            record=record,
            row=_row(store.plan(), record.trial_id),
            budgets=tuple(json.loads(record.tag(Tag.BUDGETS, "[]"))),
            configuration=configuration,
            artifacts=artifacts,
            provenance=provenance_of(store, record),
            traceback=trace.read_text(encoding="utf-8") if trace else "",
            others=tuple(
                other for other in store.records(trial_id=record.trial_id) if other.run_id != record.run_id
            ),
        )
    except BROKEN_STORE as error:
        raise UserError(shown_uri(f"trial '{trial}' cannot be read from {uri}: {error}")) from error


def _row(plan: StoredPlan | None, trial_id: str) -> PlannedRow | None:
    rows = plan.rows if plan else ()
    return next((row for row in rows if trial_id in row.trials.values()), None)
