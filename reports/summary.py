"""The summary of results that a run of a suite shows at its end."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tensorbench.machine.table import Table
from tensorbench.records.record import Point, Record, latest
from tensorbench.records.stored_plan import StoredPlan
from tensorbench.records.words import Status
from tensorbench.reports.cautions import guards
from tensorbench.reports.overview import overview
from tensorbench.reports.reading import tabulate, up_to_looks
from tensorbench.reports.recipes import find_mixtures, refuse_mixtures, with_heads
from tensorbench.reports.results import Experiment, Results, distinct
from tensorbench.store.source import Source

if TYPE_CHECKING:
    from tensorbench.reports.analysis import Analysis
    from tensorbench.reports.blocks import Block

#: The largest number of characters in each of the two parts of a metric's name. MLflow allows 250 in all.
LONGEST_PART = 100


@dataclass(frozen=True)
class Summary:
    """The results of a plan or of a part of it, with their comparisons."""

    analysis: Analysis
    #: The text with which the suite's results end. Empty if the suite has no such text.
    closing: str
    #: Warnings about trainings (see `tensorbench.reports.cautions`).
    warnings: tuple[str, ...] = ()

    @property
    def results(self) -> Results:
        return self.analysis.results

    @property
    def complete(self) -> bool:
        """Whether all trials have finished, and no look of a sequential experiment waits for more."""
        waits = any(each.waits for each in self.results.experiments)
        return not waits and all(cell.complete for cell in self.results.all_cells)

    @property
    def remarks(self) -> list[str]:
        """Remarks on trials, looks, windows and trainings, and the suite's closing text."""
        from tensorbench.reports.answers import window_advice

        lost = distinct(seed for seed in self.results.all_seeds if not seed.finished)
        failed = [seed for seed in lost if seed.status == Status.FAILED]
        remarks = []
        if any(seed.study is not None for seed in failed):
            remarks.append(
                f"✗ {len(failed)} trial(s) failed. Diverged trials score as guessing does. Studies with "
                "other failures are left out until `--retry-failed` has run them again."
            )
        elif failed:
            remarks.append(
                f"✗ {len(failed)} trial(s) failed; they enter no mean. `--retry-failed` runs them again."
            )
        if missing := len(lost) - len(failed):
            remarks.append(
                f"✗ {missing} trial(s) are missing; they enter no mean. A start without `--retry-failed` "
                "runs them."
            )
        remarks += [f"✗ {each.waits}" for each in self.results.experiments if each.waits]
        closing = [self.closing] * bool(self.closing)
        return [*remarks, *window_advice(self.analysis), *self.warnings, *closing]

    def overview(self, name: str) -> Table:
        """The table of scores. Its notes are the answers and the remarks."""
        from tensorbench.reports.answers import answers

        return overview(name, self.results, [*answers(self.analysis), *self.remarks], self.analysis)

    @property
    def failures(self) -> list[str]:
        """The sentences to show before the answers: the guards of all blocks, and faults of other cells."""
        guards = (guard for block in self.analysis.blocks for guard in block.guards)
        return list(dict.fromkeys([*guards, *self.analysis.faults]))

    def tables(self, name: str) -> list[Table]:
        """The tables that a terminal shows: failures, scores, answers with their differences, and remarks."""
        from tensorbench.reports.answers import answers, of_block, remarks

        analysis, columns = self.analysis, ("method", "verdict")
        compared = [
            Table(of_block(analysis, block, guarded=False), list(_claims(block)), remarks(block), columns)
            for block in analysis.blocks
        ]
        return [
            *(Table(failure, ()) for failure in self.failures),
            overview(name, self.results, (), analysis),
            *(compared or [Table(answers(analysis)[-1], ())]),
            Table("", (), self.remarks),
        ]


def _claims(block: Block) -> Iterator[dict[str, str]]:
    """Yields a line for each method that a block compares. Yields none if no difference has an interval."""
    from tensorbench.reports.answers import between, in_words

    comparisons = [(entrant, entrant.differences[block.k]) for entrant in block.claims]
    if not any(comparison.interval for _, comparison in comparisons):
        return
    for entrant, comparison in comparisons:
        said = in_words(comparison.verdict, block.unit.size(block.threshold))
        yield {
            "method": entrant.method,
            f"{block.unit.points} from {block.against}": block.unit.difference(comparison.effect.difference),
            "simultaneous 95%": between(comparison, block.unit) if comparison.interval else "–",
            "verdict": said + (f",{extent}" if (extent := block.extent(comparison)) else ""),
        }


@dataclass(frozen=True)
class SuiteAnswer:
    """The conclusions of a complete suite, in the form in which they are logged on its run in MLflow."""

    sentences: tuple[str, ...]
    #: The differences from the reference and the ends of their intervals, as points of MLflow metrics. With
    #: tuning, the step is the number of trials; otherwise it is 0.
    differences: tuple[Point, ...]


def suite_answer(analysis: Analysis) -> SuiteAnswer:
    """Computes the conclusions of a complete suite. Raises UserError for trials that cannot be compared."""
    from tensorbench.reports.answers import answers, remarks

    refuse_mixtures(find_mixtures(analysis.results))
    now, points = int(time.time() * 1000), []
    for block in analysis.blocks:
        several = f"{block.title} " * (len(analysis.blocks) > 1)
        against = f"difference from {_metric_name(block.against)}"
        # A metric cannot say that a difference is a mean over fewer tasks than the others.
        everywhere = [e for e in block.claims if not block.extent(e.differences[block.k])]
        differences = [(e.method, k * block.tuned, d) for e in everywhere for k, d in e.differences.items()]
        differences += [(level.method, 0, level.comparison) for level in block.levels if level.comparison]
        for method, step, each in differences:
            name = _metric_name(several + method)
            points.append(Point(f"{against}/{name}", each.effect.difference, now, step))
            for end, bound in zip(("low", "high"), each.interval or (), strict=False):
                points.append(Point(f"{against} {end}/{name}", bound, now, step))
    beneath = (remark for block in analysis.blocks for remark in remarks(block))
    return SuiteAnswer((*answers(analysis), *beneath), tuple(points))


def _metric_name(text: str) -> str:
    """Makes a text valid as part of a metric's name. MLflow accepts only some characters."""
    return " ".join(re.sub(r"[^\w.\- ]", " ", text).split())[:LONGEST_PART]


def summarise(
    store: Source,
    plan: StoredPlan,
    records: Iterable[Record] | None = None,
    *,
    full_plan: StoredPlan | None = None,
) -> Summary:
    """Reads the stored results of a plan, or of a part of `full_plan`.

    The heads of `full_plan` that have run stay beside a part's adapters (see `with_heads`). `records` are the
    store's records. If it is None, they are read from the store. Failed and missing trials are counted, but
    are in no mean.
    """
    # Importing the statistics takes a second.
    from tensorbench.reports.analysis import analyse

    experiment = stored_experiment(store, full_plan or plan, records)
    # Trials of methods that stopped at a look are not planned any more.
    there = {id_ for row in experiment.rows for id_ in row.trials.values()}
    own = [row.only([seed for seed, id_ in row.trials.items() if id_ in there]) for row in plan.rows]
    (rows,) = with_heads([experiment], [tuple(row for row in own if row.trials)])
    experiment = replace(experiment, rows=rows)
    results = Results((experiment,), tabulate([experiment]), notes=())
    return Summary(analyse(results), plan.closing, tuple(guards(experiment)))


def stored_experiment(
    source: Source, plan: StoredPlan, records: Iterable[Record] | None = None
) -> Experiment:
    """The stored results of a plan, up to the last look if it is sequential.

    `records` are those of `source`. If it is None, they are read from it. Raises UserError if the rows of the
    plan differ in their looks.
    """
    return up_to_looks(
        Experiment(
            source=source,
            name=source.name,
            closing=plan.closing,
            run_id="",
            rows=plan.rows,
            trials=plan.by_id(),
            records=latest(source.records() if records is None else records),
            duplicates=0,
            studied=plan.studied,
        )
    )
