"""Equal tuning: every method gets the same number of tuning trials, and the best setting is locked."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from bench.metrics import METRICS
from bench.plan.rows import Candidate, Choice, Plan, Row
from bench.store.records import Record, comparable, latest, results
from bench.store.store import Store
from bench.wire.plan import StoredPlan, Tuned
from bench.wire.words import By


def with_choices(plan: Plan, store: Store) -> Plan:
    """The plan with the final trials of every row whose tuning trials have all ended.

    A row chooses the setting with the best mean over the tuning seeds of what the suite's tuning goes by, the
    validation loss or the validation score; among equals that with the better mean of the other, and among
    equals in that too the first. A setting of which more seeds failed comes after one of which fewer did.
    What an earlier start has chosen stays chosen, even if a tuning trial was tried again since.
    """
    waiting = {i: row for i, row in enumerate(plan.rows) if row.tuning and row.tuning.chosen is None}
    if not waiting:
        return plan
    records, locked = latest(store.records()), _locked(store.plan())
    chosen = {}
    for index, row in waiting.items():
        assert row.tuning is not None
        if all(id_ in records and records[id_].decided for id_ in row.tuning.ids):
            chosen[index] = _named(row, locked.get(frozenset(row.tuning.ids))) or _best(row, records)
    return plan.with_choices(chosen) if chosen else plan


def _best(row: Row, records: Mapping[str, Record]) -> Choice:
    assert row.tuning is not None
    signs: dict[By, float] = {"loss": -1.0, "score": METRICS.get(row.definition.metric).sign}

    def merit(candidate: Candidate, by: By) -> tuple[int, float]:
        values = results(records, candidate.tuning.values(), by)
        return len(values), signs[by] * comparable(fmean(values)) if values else 0.0

    by: By = row.tuning.by
    other: By = "score" if by == "loss" else "loss"
    best = max(merit(candidate, by) for candidate in row.candidates)
    equal = [candidate for candidate in row.candidates if merit(candidate, by) == best]
    # Settings of which every seed failed have no result to share.
    return Choice(
        candidate=max(equal, key=lambda candidate: merit(candidate, other)),
        tied=len(equal) - 1 if best[0] else 0,
    )


def _named(row: Row, stored: Tuned | None) -> Choice | None:
    """What the stored plan chose, if the row has such a setting."""
    for candidate in row.candidates:
        if stored and candidate.setting.model_dump(exclude_none=True) == stored.chosen:
            return Choice(candidate=candidate, tied=stored.tied)
    return None


def _locked(plan: StoredPlan | None) -> dict[frozenset[str], Tuned]:
    """What the stored plan says of the rows that have chosen, by the ids of their tuning trials.

    Their order is another in a plan of an earlier version.
    """
    tuned = [row.tuning for row in plan.rows if row.tuning] if plan else []
    return {frozenset(entry.ids): entry for entry in tuned if entry.chosen is not None}
