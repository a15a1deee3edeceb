"""The contents of a store: its experiments in numbers, and single trials and cells with provenance."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from tensorbench.methods import UserError
from tensorbench.records.measures import Measure
from tensorbench.records.record import Record, latest
from tensorbench.records.stored_plan import Row, StoredPlan, StudyTrial
from tensorbench.records.words import Artifact, RunKind, Status, Tag
from tensorbench.reports.provenance import UNKNOWN, Provenance, provenance_of
from tensorbench.reports.reading import read
from tensorbench.reports.results import Cell, Seed, kept_trials
from tensorbench.reports.selection import Selection
from tensorbench.store.addresses import shown_uri
from tensorbench.store.connect import BROKEN_STORE
from tensorbench.store.store import Store
from tensorbench.store.trained import find_trial


@dataclass(frozen=True)
class Contents:
    """An experiment in numbers. Each trial in the suite's latest plan counts once."""

    experiment: str
    #: The numbers of planned trials that are finished, failed, running and missing.
    complete: int
    failed: int
    running: int
    missing: int
    #: The numbers of planned studies, and of studies whose trials have all ended. None if no row has studies.
    studies: int | None
    studies_complete: int | None
    #: The number of stored trials that are not in the latest plan's rows. They belong to searches and earlier
    #: plans.
    others: int
    #: The time at which the latest run of a suite or trial began, in milliseconds since the epoch.
    latest: int


def contents(uri: str) -> list[Contents]:
    """All experiments of a store that have a suite or a trial, sorted by name.

    Raises UserError if there is no store, or if the store cannot be read.
    """
    try:
        counted = (_counted(store) for store in Store.every(uri))
        return [contents_ for contents_ in counted if contents_ is not None]
    except BROKEN_STORE as error:
        raise UserError(shown_uri(f"{uri} cannot be read: {error}")) from error


def _counted(store: Store) -> Contents | None:
    suites, records = store.records(RunKind.SUITE), latest(store.records())
    if not (suites or records):
        return None
    plan = store.plan()
    planned = {id_ for row in (plan.rows if plan else ()) for id_ in row.trials.values()}
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


def _studies(rows: Sequence[Row], ended: Set[Any]) -> tuple[int | None, int | None]:
    """The number of planned studies and the number of ended ones. Both are None if no row has studies.

    A study has ended if all its trials in all rows have ended.
    """
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
    """Everything that a store contains about one trial."""

    experiment: str
    #: The run that counts.
    record: Record
    #: The trial's row in the suite's latest plan. None if the trial is in no row, as are trials of searches.
    row: Row | None
    #: The trial's budgets, each as a mapping with `budget`, `asked`, `ratio` and `within` (see `Cell`).
    budgets: tuple[Mapping[str, Any], ...]
    #: The resolved configuration. Its keys are those in MLflow, such as `method.rank` and `recipe.lr`.
    configuration: Mapping[str, str]
    #: The sizes of artifacts in bytes, by name.
    artifacts: Mapping[str, int | None]
    #: The origin: suite, commit, packages, seeds and hardware.
    provenance: Provenance
    #: Python's traceback, if the trial failed and a traceback is stored. Otherwise empty.
    traceback: str
    #: The trial's other runs, oldest first, such as failures before a retry.
    others: tuple[Record, ...]

    def as_dict(self) -> dict[str, Any]:
        """The contents as JSON values."""
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
        """The trial's study and point. None if the trial has no row, or a row without studies."""
        studies = self.row.studies if self.row else None
        return studies.trials.get(int(self.record.tag(Tag.SEED))) if studies else None

    def measure(self, measure: Measure) -> float | None:
        """The stored value of a measure. None if the store has none."""
        return self.record.measure(measure)


def trial_contents(uri: str, trial: str) -> TrialContents:
    """Reads the trial whose trial id or run id begins with `trial`.

    Raises UserError if no trial or several trials match, and for a store that cannot be read.
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


def _row(plan: StoredPlan | None, trial_id: str) -> Row | None:
    rows = plan.rows if plan else ()
    return next((row for row in rows if trial_id in row.trials.values()), None)


@dataclass(frozen=True)
class CellContents:
    """A cell of a report's tables, with the provenance of its seeds."""

    cell: Cell
    #: Each seed with its provenance. The provenance is None if the trial never started.
    seeds: Sequence[tuple[Seed, Provenance | None]]

    @property
    def kept(self) -> Collection[str]:
        """The ids of the trials that complete studies keep. Empty for a cell without studies."""
        if self.cell.studies is None:
            return ()
        kept = kept_trials(self.cell.studies, (seed for seed, _ in self.seeds)).values()
        return {seed.trial_id for seed in kept if seed}

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yields (heading, text) for each subject of the seeds' provenance, except their random streams.

        If the seeds differ, each text is followed by the number of seeds that have it.
        """
        started = [dict(provenance.lines()) for _, provenance in self.seeds if provenance]
        for head in dict.fromkeys(head for lines in started for head in lines if head != "streams"):
            for text, count in Counter(lines.get(head, UNKNOWN) for lines in started).items():
                yield head, text if count == len(started) else f"{text} ({count} of {len(started)} seeds)"

    def as_dict(self) -> dict[str, Any]:
        """The contents as JSON values, including the full texts of suites."""
        seeds = [seed.columns() | {"provenance": provenance} for seed, provenance in self.seeds]
        plain: dict[str, Any] = to_jsonable_python(
            {"cell": self.cell.columns(), "seeds": seeds},
            inf_nan_mode="null",
            fallback=lambda value: value.item(),
        )
        return plain


def cell_contents(
    uri: str, names: Sequence[str], number: int, selection: Selection | None = None
) -> CellContents:
    """The cell with this number, and the provenance of its seeds.

    `number` is the cell's number in the file `cells.csv` of a report on the same experiments with the same
    selection. Raises UserError if no cell has the number, and as `tensorbench.reports.reading.read` does.
    """
    results = read(uri, names, selection)
    if not 0 <= number < len(results.all_cells):
        raise UserError(f"--cell {number}: {results.title} has cells 0 to {len(results.all_cells) - 1}")
    seeds = []
    for seed in results.of_cell(number):
        experiment = results.experiment(seed.experiment)
        record = experiment.records.get(seed.trial_id)
        seeds.append((seed, provenance_of(experiment.source, record) if record else None))
    return CellContents(results.all_cells[number], seeds)
