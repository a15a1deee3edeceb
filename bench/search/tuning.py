"""Equal tuning: every method gets the same number of tuning trials, and the best setting is locked."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from bench.plan.rows import Candidate, Plan, Row
from bench.store.records import Record, latest, scores
from bench.store.store import Store
from bench.wire.plan import StoredPlan


def with_choices(plan: Plan, store: Store) -> Plan:
    """The plan with the final trials of every row whose tuning trials have all ended.

    A row chooses the setting with the best mean validation score over the tuning seeds, the first of equals.
    A setting of which more seeds failed comes after one of which fewer did. What an earlier start has chosen
    stays chosen, even if a tuning trial was tried again since.
    """
    waiting = {i: row for i, row in enumerate(plan.rows) if row.tuning and row.tuning.chosen is None}
    if not waiting:
        return plan
    records, locked = latest(store.records()), _locked(store.plan())
    chosen = {}
    for index, row in waiting.items():
        assert row.tuning is not None
        if all(id_ in records and records[id_].settled for id_ in row.tuning.ids):
            chosen[index] = _named(row, locked.get(row.tuning.ids)) or _best(row, records)
    return plan.with_choices(chosen) if chosen else plan


def _best(row: Row, records: Mapping[str, Record]) -> Candidate:
    def rank(candidate: Candidate) -> tuple[int, float]:
        found = scores(records, candidate.tuning.values())
        return len(found), fmean(found) if found else 0.0

    return max(row.candidates, key=rank)


def _named(row: Row, setting: Mapping[str, float] | None) -> Candidate | None:
    return next((c for c in row.candidates if c.setting.model_dump(exclude_none=True) == setting), None)


def _locked(plan: StoredPlan | None) -> dict[tuple[str, ...], Mapping[str, float]]:
    """The settings that the stored plan has chosen, by the ids of the tuning trials."""
    tuned = [row.tuning for row in plan.rows if row.tuning] if plan else []
    return {entry.ids: entry.chosen for entry in tuned if entry.chosen is not None}
