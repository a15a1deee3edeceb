"""Contents of a store: its experiments in numbers, and trials and cells with where they come from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from bench.store.connect import BROKEN_STORE, shown_uri
from bench.store.source import Source
from bench.store.store import Store
from bench.store.trained import find_trial
from bench.wire.measures import Measure
from bench.wire.plan import PlannedRow, StoredPlan, StudyTrial
from bench.wire.record import Record, latest
from bench.wire.start import Start, StoredConfig
from bench.wire.words import Artifact, Kind, Status, Tag
from methods import UserError
from reports.part import ReportPart
from reports.reading import read
from reports.study import Cell, Seed

#: What stands for something that was not stored.
UNKNOWN = "not stored"

#: The keys of provenance by what a reviewer asks for; one that ends in '_' stands for all that begin so.
PARTS = {
    "code": ("harness", "git_commit", "git_dirty", "source_"),
    "packages": ("python", "version_"),
    "hardware": ("platform", "cpu", "cpu_cores", "threads", "memory_mib", "gpu", "cuda"),
    "memory saved by": ("micro_batch", "checkpointing"),
}


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
class Provenance:
    """Where one trial's numbers come from."""

    #: Milliseconds since the epoch; None while it runs.
    started: int
    ended: int | None
    #: Commit, main versions and hardware.
    facts: Mapping[str, str]
    #: The suite and the lock, every package, the seeds of the streams; None where they are not known ...
    start: Start | None
    #: ... and why.
    why: str = ""

    def suite_text(self) -> str:
        """The suite as it was read. Raises UserError where it is not known."""
        if self.start is None:
            raise UserError(f"the text of the trial's suite is not known: {self.why or UNKNOWN}")
        return self.start.suite.text

    def lines(self) -> Iterator[tuple[str, str]]:
        """The same for people: headings and texts, in the order in which a reviewer asks."""
        suite, lock = (self.start.suite, self.start.lock) if self.start else (None, None)
        told = f"{suite.name or 'from Python'}, sha256 {suite.sha256}" if suite else self.why or UNKNOWN
        yield "suite", told
        if self.start:
            yield "lock", f"{lock.name}, sha256 {lock.sha256}" if lock else "none"
        for part, keys in PARTS.items():
            own = {key.removeprefix("version_"): value for key, value in self._of(keys) if value}
            text = ", ".join(f"{key} {value}" for key, value in own.items()) or UNKNOWN
            if part == "memory saved by" and not own:
                continue
            if part == "packages" and self.start:
                text += f"; {len(self.start.libraries)} packages in all"
            yield part, text
        if self.start:
            yield "streams", ", ".join(f"{name} {seed}" for name, seed in self.start.streams.items())

    def _of(self, keys: tuple[str, ...]) -> list[tuple[str, str]]:
        return [
            (key, value)
            for key, value in self.facts.items()
            if any(key == one or (one.endswith("_") and key.startswith(one)) for one in keys)
        ]


def provenance_of(source: Source, record: Record) -> Provenance:
    """What is stored of where a trial comes from. What cannot be trusted is told, and raises nothing."""
    try:
        config = source.content(record, Artifact.CONFIG, StoredConfig)
        start, why = (config.start, "an earlier version stored none") if config else (None, "")
    except UserError as error:
        start, why = None, str(error)
    return Provenance(record.started, record.ended, record.provenance, start, "" if start else why)


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


@dataclass(frozen=True)
class CellContents:
    """A cell of a report's tables, and where each of its seeds comes from."""

    cell: Cell
    #: By seed; None where the trial never started.
    seeds: Sequence[tuple[Seed, Provenance | None]]

    def lines(self) -> Iterator[tuple[str, str]]:
        """What its seeds come from; where they differ, each with how many it holds for."""
        known = [dict(provenance.lines()) for _, provenance in self.seeds if provenance]
        for head in dict.fromkeys(head for lines in known for head in lines if head != "streams"):
            for text, count in Counter(lines.get(head, UNKNOWN) for lines in known).items():
                yield head, text if count == len(known) else f"{text} ({count} of {len(known)} seeds)"

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON takes it, with all texts."""
        seeds = [asdict(seed) | {"provenance": provenance} for seed, provenance in self.seeds]
        told: dict[str, Any] = to_jsonable_python(
            {"cell": self.cell, "seeds": seeds}, inf_nan_mode="null", fallback=lambda value: value.item()
        )
        return told


def cell_contents(
    uri: str, names: Sequence[str], number: int, part: ReportPart | None = None
) -> CellContents:
    """The cell of this number, as `cells.csv` of a report on the same experiments, or on this part of them,
    counts them.

    Raises UserError for one that is not there, and as `reports.reading.read` does.
    """
    study = read(uri, names, part)
    if not 0 <= number < len(study.all_cells):
        raise UserError(f"--cell {number}: {study.title} has cells 0 to {len(study.all_cells) - 1}")
    seeds = []
    for seed in study.of_cell(number):
        experiment = study.experiment(seed.experiment)
        record = experiment.records.get(seed.trial_id)
        seeds.append((seed, provenance_of(experiment.source, record) if record else None))
    return CellContents(study.all_cells[number], seeds)
