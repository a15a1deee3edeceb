"""Decides how the parts of one experiment, which are in packs and a store, are merged.

Parts that contradict each other are refused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tensorbench.methods import UserError
from tensorbench.methods.errors import shown
from tensorbench.records.measures import Measure
from tensorbench.records.origin import HARDWARE
from tensorbench.records.record import Record
from tensorbench.records.stored_plan import PlannedTrial, Row, StoredPlan, StudyPlan
from tensorbench.records.words import Artifact, Status
from tensorbench.store.source import Source

#: The largest accepted differences between two results of one trial, divided by the result if it is above 1.
#: They are those of `verify` for trials that ran again on the same hardware. Losses are compared only if both
#: ran on the same processor, since GPUs and other processors round otherwise.
AGREES = {Measure.SCORE: 1e-6, Measure.SELECTED_LOSS: 1e-4}

#: The fields of a task that must be equal in all parts. Its name and its files may differ between machines.
SIZES = ("train_size", "validation_size", "test_size")

#: The keys of `_content` that may differ between the trials of a row with studies.
STUDIED = ("training lr", "training head_lr")

#: The largest number of contradictions listed in an error.
MOST_LISTED = 10


def brings_more(coming: tuple[Source, Record], stored: tuple[Source, Record] | None) -> bool:
    """Whether a run that is merged should replace the stored run of the same trial.

    Each argument is a source with one of its runs; `stored` is None if no run is stored. A finished run
    replaces a run that did not finish. If it has its adapter, it also replaces a finished run without one. A
    failed run replaces a run that is not settled.
    """
    if stored is None:
        return True
    (source, run), (other_source, other) = coming, stored
    if other.status == Status.FINISHED:
        there = run.status == Status.FINISHED and source.has(run, Artifact.ADAPTER)
        return there and not other_source.has(other, Artifact.ADAPTER)
    return run.status == Status.FINISHED or (run.settled and not other.settled)


def refuse_contradictions(name: str, stored: Mapping[str, Record], coming: Iterable[Record]) -> None:
    """Raises UserError if a trial has different results in two parts of the experiment `name`.

    Results are the score, and the validation loss by which studies choose. `stored` maps trial ids to
    records.
    """
    apart = []
    for record in coming:
        other = stored.get(record.trial_id)
        if other is None or not other.status == record.status == Status.FINISHED:
            continue
        for measure, allowed in AGREES.items():
            a, b = (_finite(run.measure(measure)) for run in (other, record))
            if measure == Measure.SELECTED_LOSS and not _alike(other, record):
                continue
            if a != b and (a is None or b is None or abs(a - b) > allowed * max(1.0, abs(a))):
                runs = f"{measure} is {a} in run {other.origin}, {b} in run {record.origin}"
                apart.append(f"  trial {record.trial_id} ({record.name}): {runs}")
                break
    if apart:
        more = f"\n  and {len(apart) - MOST_LISTED} more" if len(apart) > MOST_LISTED else ""
        raise UserError(
            f"experiment '{name}': {len(apart)} trial(s) have other scores or validation losses in one part "
            "than in another; nothing was merged:\n" + "\n".join(apart[:MOST_LISTED]) + more
        )


def _alike(first: Record, second: Record) -> bool:
    """Whether two runs were computed without a GPU, by the same processor, threads and libraries."""
    keys = (*HARDWARE, "threads")
    return not first.provenance.get("gpu") and all(
        first.provenance.get(key) == second.provenance.get(key) for key in keys
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def merged_commits(parts: Iterable[Source]) -> dict[str, str]:
    """Joins the commits at which the parts of an experiment used the hub, as in `StoredSuite.commits`.

    Raises UserError if two parts used different commits of one branch or tag.
    """
    commits: dict[str, str] = {}
    for part in parts:
        for revision, commit in part.commits().items():
            if commits.setdefault(revision, commit) != commit:
                raise UserError(
                    f"experiment '{part.name}': {revision} is {commits[revision]} in one part, and in "
                    f"{part.where} {commit}; nothing was merged"
                )
    return commits


def merged_plan(first: StoredPlan, second: StoredPlan) -> StoredPlan:
    """Merges the rows and seeds of two plans. Raises UserError if they ran a common row differently."""
    if first == second:
        return first
    trials_of_first, coming = first.by_id(), second.by_id()
    rows = _by_key(first)
    for key, row in _by_key(second).items():
        if key in rows:
            trials = [*_of(rows[key], trials_of_first), *_of(row, coming)]
            row = _merged_row(first.suite, rows[key], row, trials)
        rows[key] = row
    return first.model_copy(
        update={
            "closing": first.closing or second.closing,
            "rows": tuple(rows.values()),
            "trials": tuple((trials_of_first | coming).values()),
        }
    )


def _by_key(plan: StoredPlan) -> dict[tuple[Any, ...], Row]:
    """Returns the rows by (task, backbone, budget, method, ranks, number).

    `number` counts the rows that are equal in the other five, from 1.
    """
    counted: Counter[tuple[Any, ...]] = Counter()
    rows = {}
    for row in plan.rows:
        key = (row.task, row.backbone, row.budget, row.method, row.ranks)
        counted[key] += 1
        rows[*key, counted[key]] = row
    return rows


def _of(row: Row, trials: Mapping[str, PlannedTrial]) -> list[PlannedTrial]:
    return [trials[id_] for id_ in row.trials.values() if id_ in trials]


def _merged_row(suite: str, first: Row, second: Row, trials: Sequence[PlannedTrial]) -> Row:
    """Merges the seeds of a row that two plans have in common.

    Raises UserError if its trials differ in more than their seeds and the rates of their studies.
    """
    where = " · ".join(filter(None, (first.method, first.budget, first.task, first.backbone)))
    contents_of_rows = [row.model_dump(exclude={"trials", "studies"}) for row in (first, second)]
    _refuse_other(suite, where, *contents_of_rows)
    studies = _merged_studies(suite, where, first.studies, second.studies)
    contents = [_content(trial) for trial in trials]
    if studies:
        # These settings differ between trials, as described in `studies`.
        contents = [
            {key: value for key, value in content.items() if key not in STUDIED} for content in contents
        ]
    for content in contents[1:]:
        _refuse_other(suite, where, contents[0], content)
    ids = dict(first.trials)
    for seed, id_ in second.trials.items():
        if ids.setdefault(seed, id_) != id_:
            raise UserError(f"suite '{suite}', {where}: seed {seed} is trial {ids[seed]} and trial {id_}")
    in_order = ids if ids.keys() == first.trials.keys() else dict(sorted(ids.items()))
    return first.model_copy(update={"trials": in_order, "studies": studies})


def _merged_studies(
    suite: str, where: str, first: StudyPlan | None, second: StudyPlan | None
) -> StudyPlan | None:
    """Returns the studies of the row that has more of them. None if neither row has studies.

    Raises UserError if only one row has studies, or if windows, points or common trials differ.
    """
    if first is None or second is None:
        _refuse_other(suite, where, {"studies": first is not None}, {"studies": second is not None})
        return None
    longer, shorter = sorted((first, second), key=lambda plan: plan.studies, reverse=True)
    windows = [plan.model_dump(exclude={"studies", "ks", "trials"}) for plan in (longer, shorter)]
    _refuse_other(suite, where, *windows)
    for seed, trial in shorter.trials.items():
        _refuse_other(suite, f"{where}: seed {seed}", dict(longer.trials.get(seed, trial)), dict(trial))
    return longer


def _content(trial: PlannedTrial) -> dict[str, Any]:
    """Returns a trial's fields that are the same for all seeds of a row, with keys such as `training lr`.

    Backbone and task are compared by the hashes of weights and data.
    """
    shared = trial.model_dump(include={"weights_hash", "evaluate", "protocol"})
    parts = {
        "method": trial.method,
        "data": trial.data,
        "training": trial.recipe,
        "task": {key: trial.task.get(key) for key in SIZES},
    }
    return shared | {
        f"{part} {key}": value for part, fields in parts.items() for key, value in fields.items()
    }


def _refuse_other(suite: str, where: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    for key in {**first, **second}:
        if first.get(key) != second.get(key):
            raise UserError(
                f"the parts of suite '{suite}' were run differently, so they do not form one experiment: "
                f"{where}: {key} is {shown(first.get(key))} in one and {shown(second.get(key))} in another; "
                "report them one by one, or compare them"
            )
