"""Equal tuning: every method gets the same number of tuning trials, and the best setting is locked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

from bench.metrics import METRICS
from bench.plan.rows import Candidate, Choice, Plan, Row
from bench.store.records import Record, comparable, latest, scores
from bench.store.store import Store
from bench.wire.plan import StoredPlan, Tuned
from bench.wire.words import Measure


def with_choices(plan: Plan, store: Store) -> Plan:
    """The plan with the final trials of every row whose tuning trials have all ended.

    A row chooses the setting with the best mean validation score over the tuning seeds, among equals that
    with the lowest mean validation loss, and among equals in that too the first. A setting of which more
    seeds failed comes after one of which fewer did. What an earlier start has chosen stays chosen, even if a
    tuning trial was tried again since.
    """
    waiting = {i: row for i, row in enumerate(plan.rows) if row.tuning and row.tuning.chosen is None}
    if not waiting:
        return plan
    records, locked = latest(store.records()), _locked(store.plan())
    signs = {row.shown: METRICS.get(row.lookup().metric).sign for row in plan.suite.tasks}
    chosen = {}
    for index, row in waiting.items():
        assert row.tuning is not None
        if all(id_ in records and records[id_].decided for id_ in row.tuning.ids):
            chosen[index] = _named(row, locked.get(frozenset(row.tuning.ids))) or _best(
                row, records, signs[row.task]
            )
    return plan.with_choices(chosen) if chosen else plan


def _best(row: Row, records: Mapping[str, Record], sign: float) -> Choice:
    def score(candidate: Candidate) -> tuple[int, float]:
        found = scores(records, candidate.tuning.values())
        return len(found), sign * comparable(fmean(found)) if found else 0.0

    def loss(candidate: Candidate) -> float:
        of_seeds = [records[id_].measure(Measure.SCORE_LOSS) for id_ in candidate.tuning.values()]
        told = [value for value in of_seeds if value is not None]
        return fmean(told) if told else math.inf

    best = max(map(score, row.candidates))
    equal = [candidate for candidate in row.candidates if score(candidate) == best]
    # Settings of which every seed failed have no score to share.
    return Choice(candidate=min(equal, key=loss), tied=len(equal) - 1 if best[0] else 0)


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
