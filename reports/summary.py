"""The summary of results that a run of a suite shows at its end."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tensorbench.machine.table import Table
from tensorbench.records.record import Point, Record, latest
from tensorbench.records.stored_plan import StoredPlan
from tensorbench.reports.cautions import guards
from tensorbench.reports.overview import overview
from tensorbench.reports.reading import tabulate
from tensorbench.reports.recipes import find_mixtures, refuse_mixtures
from tensorbench.reports.results import Experiment, Results
from tensorbench.store.store import Store

if TYPE_CHECKING:
    from tensorbench.reports.analysis import Analysis
    from tensorbench.reports.blocks import Block
    from tensorbench.reports.inference.intervals import Bounds

#: The longest part of a metric's name, which has two and at most 250 characters.
LONGEST_PART = 100


@dataclass(frozen=True)
class Summary:
    """The results of a plan or of a part of it, with their comparisons."""

    analysis: Analysis
    #: The text with which the suite's results end. Empty if the suite has no such text.
    closing: str
    #: Warnings about trainings.
    warnings: tuple[str, ...] = ()

    @property
    def results(self) -> Results:
        return self.analysis.results

    @property
    def complete(self) -> bool:
        return all(cell.complete for cell in self.results.all_cells)

    @property
    def failures(self) -> list[str]:
        """What comes before any answer: the guards of all blocks, and of cells in no block."""
        guards = (guard for block in self.analysis.blocks for guard in block.guards)
        return list(dict.fromkeys([*guards, *self.analysis.faults]))

    def overview(self, name: str) -> Table:
        """The table of scores. Its notes are the answer, warnings, and the suite's closing text."""
        from tensorbench.reports.answers import answers, window_advice

        notes = [*answers(self.analysis), *window_advice(self.analysis), *self.warnings, self.closing]
        return overview(name, self.results, list(filter(None, notes)), self.analysis.score)


@dataclass(frozen=True)
class SuiteAnswer:
    """The answer of a complete suite, as its run in MLflow shows it."""

    sentences: tuple[str, ...]
    #: The differences from the reference and the ends of their intervals, as metrics. With tuning, there is a
    #: step for each number of trials.
    differences: tuple[Point, ...]


def suite_answer(analysis: Analysis) -> SuiteAnswer:
    """Computes the answer of a complete suite. Raises UserError for trials that cannot be compared."""
    from tensorbench.reports.answers import answers, remarks

    refuse_mixtures(find_mixtures(analysis.results))
    now, points = int(time.time() * 1000), []
    for block, method, step, difference, interval in _differences(analysis):
        several = f"{block.title} " * (len(analysis.blocks) > 1)
        name = _metric_name(several + method)
        against = f"difference from {_metric_name(block.against)}"
        points.append(Point(f"{against}/{name}", difference, now, step))
        for end, bound in zip(("low", "high"), interval or (), strict=False):
            points.append(Point(f"{against} {end}/{name}", bound, now, step))
    beneath = (remark for block in analysis.blocks for remark in remarks(block))
    return SuiteAnswer((*answers(analysis), *beneath), tuple(points))


def _differences(analysis: Analysis) -> Iterator[tuple[Block, str, int, float, Bounds | None]]:
    """Yields each block, method, number of trials of tuning (0 without tuning), difference and interval."""
    for block in analysis.blocks:
        for entrant in block.claims:
            for k, each in entrant.differences.items():
                step = k if block.tuned else 0
                yield block, entrant.method, step, each.effect.difference, each.interval
        for level in block.levels:
            if level.comparison:
                yield block, level.method, 0, level.comparison.effect.difference, level.comparison.interval


def _metric_name(text: str) -> str:
    """Makes a text a part of a metric's name: MLflow accepts few characters in it."""
    return " ".join(re.sub(r"[^\w.\- ]", " ", text).split())[:LONGEST_PART]


def summarise(store: Store, plan: StoredPlan, records: Iterable[Record] | None = None) -> Summary:
    """Reads the stored results of a plan or of a part of it.

    `records` are the store's records. If it is None, they are read from the store. Failed and missing trials
    are counted, but are in no mean.
    """
    # Importing the statistics takes a second.
    from tensorbench.reports.analysis import analyse

    experiment = Experiment(
        source=store,
        name=store.name,
        closing=plan.closing,
        run_id="",
        rows=plan.rows,
        trials=plan.by_id(),
        records=latest(store.records() if records is None else records),
        duplicates=0,
    )
    results = Results((experiment,), *tabulate([experiment]), notes=())
    return Summary(analyse(results), plan.closing, tuple(guards(experiment)))
