"""The cells of an experiment as a run tells them when it ends."""

from __future__ import annotations

from dataclasses import dataclass

from bench.store.records import latest
from bench.store.store import Store
from bench.wire.plan import StoredPlan
from reports.reading import Frame, Source, tabulate


@dataclass(frozen=True)
class Summary:
    """A row a line of the plan; `mean` and `sd` are over the finished seeds, whose number stands beside."""

    closing: str
    #: As in `reading.Study`.
    cells: Frame
    seeds: Frame

    @property
    def complete(self) -> bool:
        return bool(self.cells["complete"].all())


def summarise(store: Store, plan: StoredPlan) -> Summary:
    """Reads what tracking stored for a plan or a part of it.

    A seed that failed or is missing is counted as such, never averaged.
    """
    source = Source(
        store=store,
        name=store.name,
        closing=plan.closing,
        run_id="",
        rows=plan.rows,
        trials=plan.by_id(),
        records=latest(store.records()),
        duplicates=0,
    )
    return Summary(source.closing, *tabulate([source]))
