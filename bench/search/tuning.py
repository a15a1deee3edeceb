"""Chooses the rates and scale of each row from its tuning trials, in suites with equal tuning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean

from tensorbench.metrics import METRICS
from tensorbench.plan.rows import CandidateSetting, Choice, Plan, Row
from tensorbench.records.record import Record, comparable, latest, results
from tensorbench.records.stored_plan import StoredPlan, Tuned
from tensorbench.records.words import By
from tensorbench.store.store import Store


def with_choices(plan: Plan, store: Store, records: Iterable[Record] | None = None) -> Plan:
    """Adds the final trials of every row whose tuning trials have all ended.

    `records` are those of the store. If None, they are read from it. For each row, the candidates with the
    fewest failed seeds are compared by their mean validation loss over the tuning seeds, or by their mean
    score if the suite says so. Ties go to the candidate that is better by the other of these two means, and
    then to the first candidate. A choice that is already stored stays, even if a tuning trial was retried.
    """
    waiting = {i: row for i, row in enumerate(plan.rows) if row.tuning and row.tuning.chosen is None}
    if not waiting:
        return plan
    by_trial, locked = latest(store.records() if records is None else records), _locked(store.plan())
    chosen = {}
    for index, row in waiting.items():
        assert row.tuning is not None
        if all(id_ in by_trial and by_trial[id_].settled for id_ in row.tuning.ids):
            chosen[index] = _stored_choice(row, locked.get(frozenset(row.tuning.ids))) or _best(row, by_trial)
    return plan.with_choices(chosen) if chosen else plan


def _best(row: Row, records: Mapping[str, Record]) -> Choice:
    assert row.tuning is not None
    signs: dict[By, float] = {"loss": -1.0, "score": METRICS.get(row.definition.metric).sign}

    def merit(candidate: CandidateSetting, by: By) -> tuple[int, float]:
        values = results(records, candidate.tuning.values(), by)
        return len(values), signs[by] * comparable(fmean(values)) if values else 0.0

    by: By = row.tuning.by
    other: By = "score" if by == "loss" else "loss"
    best = max(merit(candidate, by) for candidate in row.candidates)
    equal = [candidate for candidate in row.candidates if merit(candidate, by) == best]
    # Settings without a finished seed have no result.
    return Choice(
        candidate=max(equal, key=lambda candidate: merit(candidate, other)),
        tied=len(equal) - 1 if best[0] else 0,
    )


def _stored_choice(row: Row, stored: Tuned | None) -> Choice | None:
    """Returns the choice of the stored tuning.

    None without one, if it is no candidate of the row, or if it was made by another result than the row's.
    """
    assert row.tuning is not None
    if stored is None or stored.by != row.tuning.by:
        return None
    for candidate in row.candidates:
        if candidate.setting.model_dump(exclude_none=True) == stored.chosen:
            return Choice(candidate=candidate, tied=stored.tied)
    return None


def _locked(plan: StoredPlan | None) -> dict[frozenset[str], Tuned]:
    """Returns the stored tuning of each row that has a choice, by the ids of its tuning trials.

    The ids are a set, since plans of earlier versions have them in another order.
    """
    tuned = [row.tuning for row in plan.rows if row.tuning] if plan else []
    return {frozenset(entry.ids): entry for entry in tuned if entry.chosen is not None}
