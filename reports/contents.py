"""Counts the trials of each experiment in a store. Needs no pandas, and for a SQLite file no MLflow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tensorbench.methods import UserError
from tensorbench.records.record import latest
from tensorbench.records.words import RunKind, Status
from tensorbench.store.addresses import shown_uri
from tensorbench.store.source import Runs
from tensorbench.store.sqlite_file import stored_runs


@dataclass(frozen=True)
class Contents:
    """An experiment's numbers of trials and studies. A trial of several rows counts once."""

    experiment: str
    #: The numbers of planned trials that are finished, failed, running and missing.
    complete: int
    failed: int
    running: int
    missing: int
    #: The numbers of planned studies, and of studies whose trials have all ended. None if no row has studies.
    studies: int | None
    studies_complete: int | None
    #: The number of stored trials in no row of the latest plan: those of searches and of earlier plans.
    others: int
    #: The time at which the latest run of a suite or trial began, in milliseconds since the epoch.
    latest: int


def contents(uri: str) -> list[Contents]:
    """Counts the contents of each experiment in a store that has a suite or a trial, sorted by name.

    Raises UserError if there is no store, or if the store cannot be read.
    """
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and database.is_file():
        runs = stored_runs(database)
        if runs is not None:
            return _all_counted(runs)
    from tensorbench.store.connect import BROKEN_STORE
    from tensorbench.store.store import Store

    try:
        return _all_counted(Store.every(uri))
    except BROKEN_STORE as error:
        raise UserError(shown_uri(f"{uri} cannot be read: {error}")) from error


def _all_counted(experiments: Iterable[Runs]) -> list[Contents]:
    counted = map(_counted, experiments)
    return [contents_ for contents_ in counted if contents_ is not None]


def _counted(runs: Runs) -> Contents | None:
    suites, records = runs.records(RunKind.SUITE), latest(runs.records())
    if not (suites or records):
        return None
    plan = runs.plan()
    rows = plan.rows if plan else ()
    planned = {id_ for row in rows for id_ in row.trials.values()}
    states = Counter(records[id_].status for id_ in planned if id_ in records)
    complete, failed, running = (states[s] for s in (Status.FINISHED, Status.FAILED, Status.RUNNING))
    tuned = [(row.studies, row.trials) for row in rows if row.studies]
    studies = {trial.study for each, _ in tuned for trial in each.trials.values()}
    ended = {id_ for id_ in planned if id_ in records and records[id_].settled}
    # A study has ended if all its trials in all rows have.
    unfinished = {
        each.trials[seed].study for each, ids in tuned for seed, id_ in ids.items() if id_ not in ended
    }
    return Contents(
        experiment=runs.name,
        studies=len(studies) if tuned else None,
        studies_complete=len(studies - unfinished) if tuned else None,
        complete=complete,
        failed=failed,
        running=running,
        missing=len(planned) - complete - failed - running,
        others=len(records.keys() - planned),
        latest=max(record.started for record in (*suites, *records.values())),
    )
