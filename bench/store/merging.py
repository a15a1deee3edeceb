"""Reads the results of one experiment, from several packs or from packs and a store, as one experiment.

Each pack's or store's results of the experiment are a part. Parts that contradict each other are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensorbench.methods import UserError
from tensorbench.methods.errors import shown
from tensorbench.records.record import Record, latest
from tensorbench.records.stored_plan import PlannedRow, PlannedTrial, StoredPlan, StudyPlan
from tensorbench.records.words import Artifact, RunKind, Status
from tensorbench.store.artifacts import as_json
from tensorbench.store.source import Source

if TYPE_CHECKING:
    import pandas as pd


#: The largest accepted difference between two scores of one trial.
AGREES = 1e-6

#: The fields of a task that must be equal in all parts. Its name and its files may differ between machines.
SIZES = ("train_size", "validation_size", "test_size")

#: The keys of `_content` that may differ between the trials of a row with studies.
STUDIED = ("training lr", "training head_lr")

#: The largest number of contradictions listed in an error.
MOST_LISTED = 10


def brings_more(coming: Record, stored: Record | None) -> bool:
    """Whether a run that is merged should replace the stored run of the same trial.

    True if no run is stored (None). A finished run replaces a run that did not finish. A failed run replaces
    a run that is not settled.
    """
    if stored is None:
        return True
    if stored.status == Status.FINISHED:
        return False
    return coming.status == Status.FINISHED or (coming.settled and not stored.settled)


def brings_adapter(coming: tuple[Source, Record], stored: tuple[Source, Record]) -> bool:
    """Whether a run that is merged has its adapter, while the stored run of the same trial lacks it.

    False unless both runs are finished trials. Each argument is a source with one of its runs.
    """
    (there, run), (here, other) = coming, stored
    if not run.status == other.status == Status.FINISHED or not run.trial_id:
        return False
    return there.has(run, Artifact.ADAPTER) and not here.has(other, Artifact.ADAPTER)


def refuse_other_scores(name: str, stored: Mapping[str, Record], coming: Iterable[Record]) -> None:
    """Raises UserError if a trial has different scores in two parts of the experiment `name`.

    `stored` maps trial ids to records.
    """
    apart = list(_apart(stored, coming))
    if apart:
        more = f"\n  and {len(apart) - MOST_LISTED} more" if len(apart) > MOST_LISTED else ""
        raise UserError(
            f"experiment '{name}': {len(apart)} trial(s) have other scores in one part than in another, by "
            f"more than {AGREES:g}; nothing was merged:\n" + "\n".join(apart[:MOST_LISTED]) + more
        )


def _apart(stored: Mapping[str, Record], coming: Iterable[Record]) -> Iterator[str]:
    for record in coming:
        other = stored.get(record.trial_id)
        if other is None or not other.status == record.status == Status.FINISHED:
            continue
        a, b = other.score, record.score
        if (a is None) != (b is None) or (a is not None and b is not None and abs(a - b) > AGREES):
            runs = f"{a} in run {other.origin}, {b} in run {record.origin}"
            yield f"  trial {record.trial_id} ({record.name}): {runs}"


def one_plan(plans: Iterable[StoredPlan]) -> StoredPlan | None:
    """Merges the plans of all parts into one. Returns None if there are no plans.

    Raises UserError if two parts ran the same row differently.
    """
    merged: StoredPlan | None = None
    for plan in plans:
        merged = plan if merged is None else merged_plan(merged, plan)
    return merged


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
            "tuning": first.tuning if first.tuning != "none" else second.tuning,
            "rows": tuple(rows.values()),
            "trials": tuple((trials_of_first | coming).values()),
        }
    )


def _by_key(plan: StoredPlan) -> dict[tuple[Any, ...], PlannedRow]:
    """The rows by (task, backbone, budget, method, ranks, number).

    `number` counts the rows that are equal in the other five, from 1.
    """
    counted: Counter[tuple[Any, ...]] = Counter()
    rows = {}
    for row in plan.rows:
        key = (row.task, row.backbone, row.budget, row.method, row.ranks)
        counted[key] += 1
        rows[*key, counted[key]] = row
    return rows


def _of(row: PlannedRow, trials: Mapping[str, PlannedTrial]) -> list[PlannedTrial]:
    return [trials[id_] for id_ in row.trials.values() if id_ is not None and id_ in trials]


def _merged_row(
    suite: str, first: PlannedRow, second: PlannedRow, trials: Sequence[PlannedTrial]
) -> PlannedRow:
    """Merges the seeds of a row that two plans have in common.

    Raises UserError if its trials differ in more than their seeds and the rates of their studies.
    """
    where = " · ".join(filter(None, (first.method, first.budget, first.task, first.backbone)))
    contents_of_rows = [row.model_dump(exclude={"trials", "tuning", "studies"}) for row in (first, second)]
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
        if ids.get(seed) and id_ and ids[seed] != id_:
            raise UserError(f"suite '{suite}', {where}: seed {seed} is trial {ids[seed]} and trial {id_}")
        ids[seed] = ids.get(seed) or id_
    tunings = [row.tuning for row in (first, second) if row.tuning is not None]
    chosen = [tuning for tuning in tunings if tuning.chosen is not None]
    tuning = next(iter(chosen or tunings), None)
    in_order = ids if ids.keys() == first.trials.keys() else dict(sorted(ids.items()))
    return first.model_copy(update={"trials": in_order, "tuning": tuning, "studies": studies})


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
    """A trial's fields that are the same for all seeds of a row, with keys such as `training lr`.

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
                f"the parts of suite '{suite}' were not run alike, so that they make no one experiment: "
                f"{where}: {key} is {shown(first.get(key))} in one and {shown(second.get(key))} in another; "
                "report them one by one, or compare them"
            )


class Joined(Source):
    """Several sources with results of one experiment, read as a single source.

    Raises UserError if they differ in a trial's score, or ran the same row differently.
    """

    def __init__(self, parts: Sequence[Source]) -> None:
        self._parts = parts
        self._plan = one_plan(plan for part in parts if (plan := part.plan()) is not None)
        #: The part that each run comes from.
        self._of_run: dict[str, Source] = {}
        self._records = {kind: self._joined(kind) for kind in RunKind}

    def _joined(self, kind: RunKind) -> list[Record]:
        chosen: dict[str, Record] = {}
        for part in self._parts:
            records = part.records(kind)
            if kind == RunKind.TRIAL:
                records = list(latest(records).values())
                refuse_other_scores(self.name, chosen, records)
            for record in records:
                # Of the suite's runs, keep one.
                earlier = chosen.get(record.trial_id)
                if brings_more(record, earlier) or (
                    earlier is not None
                    and brings_adapter((part, record), (self._of_run[earlier.run_id], earlier))
                ):
                    chosen[record.trial_id] = record
                    self._of_run[record.run_id] = part
        return sorted(chosen.values(), key=lambda record: (record.started, record.origin))

    def part(self, record: Record) -> Source:
        """Returns the source that a run comes from."""
        return self._of_run[record.run_id]

    @property
    def name(self) -> str:
        return self._parts[0].name

    @property
    def where(self) -> str:
        return ", ".join(part.where for part in self._parts)

    def records(self, kind: RunKind = RunKind.TRIAL) -> list[Record]:
        return self._records[kind]

    def has(self, record: Record, name: Artifact) -> bool:
        return self.part(record).has(record, name)

    def read(self, record: Record, name: Artifact) -> bytes | None:
        part = self.part(record)
        if name == Artifact.PLAN and self._plan is not None and part.plan() != self._plan:
            return as_json(self._plan).encode()
        return part.read(record, name)

    def curves(self, key: str | None = None, runs: Collection[str] = ()) -> pd.DataFrame:
        import pandas as pd

        frames = [part.curves(key, runs) for part in self._parts]
        own = [
            frame[[self._of_run.get(run_id) is part for run_id in frame["run_id"]]]
            for part, frame in zip(self._parts, frames, strict=True)
        ]
        return pd.concat(own).sort_values(["run_id", "key", "step"], ignore_index=True)

    def plan(self) -> StoredPlan | None:
        return self._plan
