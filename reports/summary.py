"""The summary of results that a run of a suite shows at its end."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from tensorbench.machine.overview import Overview
from tensorbench.records.record import Point, Record, latest
from tensorbench.records.stored_plan import StoredPlan
from tensorbench.reports.cautions import guards
from tensorbench.reports.collapses import collapses
from tensorbench.reports.guards import find_guards, plain_lora
from tensorbench.reports.overview import overview
from tensorbench.reports.reading import tabulate
from tensorbench.reports.study import CellsAndSeeds, Experiment, Study, TableRow
from tensorbench.store.store import Store

if TYPE_CHECKING:
    from tensorbench.reports.analysis import Analysis, Block
    from tensorbench.reports.inference.intervals import Bounds
    from tensorbench.reports.studies import StudyAnalysis, StudyBlock

#: The longest part of a metric's name, which has two and at most 250 characters.
LONGEST_PART = 100


@dataclass(frozen=True)
class Summary(CellsAndSeeds):
    """The results of a plan or of a part of it.

    `cells` and `seeds` are as in `tensorbench.reports.study.Study`.
    """

    #: The text with which the suite's results end. Empty if the suite has no such text.
    closing: str
    cells: pd.DataFrame
    seeds: pd.DataFrame
    #: Warnings about trainings, tunings and searches.
    warnings: tuple[str, ...] = ()
    #: The guards of all blocks, with plain LoRA as the reference.
    failures: tuple[str, ...] = ()
    #: The analysis with every method's score after k trials. None if the plan has no studies.
    studies: StudyAnalysis | None = None

    @property
    def complete(self) -> bool:
        return bool(self.cells["complete"].all())

    def overview(self, name: str) -> Overview:
        """The table of scores.

        Its notes are failures, the answer of studies, warnings, and the suite's closing text.
        """
        first, score_of = list(self.failures), None
        if self.studies is not None:
            from tensorbench.reports import study_words

            first = [*study_words.answers(self.studies), *study_words.window_advice(self.studies)]
            score_of = self.studies.score
        notes = [*first, *self.warnings, self.closing]
        return overview(name, self.all_cells, self.all_seeds, list(filter(None, notes)), score_of)


@dataclass(frozen=True)
class SuiteAnswer:
    """The answer of a complete suite, as its run in MLflow shows it."""

    sentences: tuple[str, ...]
    #: The differences from the reference and the ends of their intervals, as metrics. With studies, there is
    #: a step for each number of trials of tuning.
    differences: tuple[Point, ...]


def suite_answer(
    store: Store, plan: StoredPlan, records: Iterable[Record], studies: StudyAnalysis | None = None
) -> SuiteAnswer:
    """Computes the answer of a suite. `studies` is the analysis of `plan`, if it is known.

    Raises UserError for trials that cannot be compared.
    """
    # Imported late, since it takes a second.
    from tensorbench.reports.report import analysis_of, answers_of

    analysis = studies or analysis_of(_study(store, plan, records))
    now, points = int(time.time() * 1000), []
    for block, method, step, difference, interval in _differences(analysis):
        several = f"{block.title} " * (len(analysis.blocks) > 1)
        name = _metric_name(several + method)
        assert block.reference is not None
        against = f"difference from {_metric_name(block.reference.method)}"
        points.append(Point(f"{against}/{name}", difference, now, step))
        for end, bound in zip(("low", "high"), interval or (), strict=False):
            points.append(Point(f"{against} {end}/{name}", bound, now, step))
    return SuiteAnswer(tuple(answers_of(analysis)), tuple(points))


def _differences(
    analysis: Analysis | StudyAnalysis,
) -> Iterator[tuple[Block | StudyBlock, str, int, float, Bounds | None]]:
    """Yields each block, method, number of trials of tuning (0 without studies), difference and interval."""
    from tensorbench.reports.studies import StudyAnalysis

    if isinstance(analysis, StudyAnalysis):
        for of_studies in analysis.blocks:
            for entrant in of_studies.compared:
                for k, each in entrant.differences.items():
                    yield of_studies, entrant.method, k, each.effect.difference, each.interval
        return
    for block in analysis.blocks:
        for comparison in block.all_comparisons:
            yield block, comparison.method, 0, comparison.effect.difference, comparison.interval


def _metric_name(text: str) -> str:
    """Makes a text a part of a metric's name: MLflow accepts few characters in it."""
    return " ".join(re.sub(r"[^\w.\- ]", " ", text).split())[:LONGEST_PART]


def summarise(store: Store, plan: StoredPlan, records: Iterable[Record] | None = None) -> Summary:
    """Reads the stored results of a plan or of a part of it.

    `records` are the store's records. If it is None, they are read from the store. Failed and missing seeds
    are counted, but are in no mean.
    """
    study = _study(store, plan, store.records() if records is None else records)
    (experiment,) = study.experiments
    studies = None
    if experiment.studied:
        # Importing the statistics takes a second, and a suite with seeds does not need them here.
        from tensorbench.reports.studies import analyse_studies

        studies = analyse_studies(study)
        failures = [guard for block in studies.blocks for guard in block.guards]
    else:
        collapsed = collapses(study)
        lora = [cell.number for cell in plain_lora(study.all_cells)]
        every = range(len(study.all_cells))
        failures = list(find_guards(study, study.all_cells, every, lora, collapsed).sentences)
    return Summary(
        closing=plan.closing,
        cells=study.cells,
        seeds=study.seeds,
        warnings=tuple(guards(experiment)),
        failures=tuple(dict.fromkeys(failures)),
        studies=studies,
    )


def _study(store: Store, plan: StoredPlan, records: Iterable[Record]) -> Study:
    experiment = Experiment(
        source=store,
        name=store.name,
        closing=plan.closing,
        run_id="",
        rows=tuple(map(TableRow.of, plan.rows)),
        trials=plan.by_id(),
        records=latest(records),
        duplicates=0,
    )
    return Study((experiment,), *tabulate([experiment]), notes=())
