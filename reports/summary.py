"""The summary of results that a run of a suite shows at its end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from bench.machine.overview import Overview
from bench.records.record import Record, latest
from bench.records.stored_plan import StoredPlan
from bench.store.store import Store
from reports.cautions import failed_references, guards, plain_lora, unbeaten
from reports.collapses import collapses
from reports.overview import overview
from reports.reading import tabulate
from reports.study import CellsAndSeeds, Experiment, Study, TableRow

if TYPE_CHECKING:
    from reports.studies import StudyAnalysis


@dataclass(frozen=True)
class Summary(CellsAndSeeds):
    """The results of a plan or of a part of it. `cells` and `seeds` are as in `reports.study.Study`."""

    #: The text with which the suite's results end. Empty if the suite has no such text.
    closing: str
    cells: pd.DataFrame
    seeds: pd.DataFrame
    #: Warnings about trainings, tunings and searches.
    warnings: tuple[str, ...] = ()
    #: A sentence for each cell in which plain LoRA failed, and one for each cell with collapsed runs. With
    #: studies, the guards of all blocks.
    failures: tuple[str, ...] = ()
    #: The analysis with every method's score after k trials. None if the plan has no studies.
    studies: StudyAnalysis | None = None

    @property
    def complete(self) -> bool:
        return bool(self.cells["complete"].all())

    def overview(self, name: str) -> Overview:
        """The table of scores.

        Its notes are failures, converged heads that no adapter beats, the answer of studies, warnings, and
        the suite's closing text.
        """
        first, score_of = [*self.failures, *unbeaten(self.all_cells)], None
        if self.studies is not None:
            from reports import study_words

            first = [*study_words.answers(self.studies), *study_words.window_advice(self.studies)]
            score_of = self.studies.score
        notes = [*first, *self.warnings, self.closing]
        return overview(name, self.all_cells, self.all_seeds, list(filter(None, notes)), score_of)


def summarise(store: Store, plan: StoredPlan, records: Iterable[Record] | None = None) -> Summary:
    """Reads the stored results of a plan or of a part of it.

    `records` are the store's records. If it is None, they are read from the store. Failed and missing seeds
    are counted, but are in no mean.
    """
    experiment = Experiment(
        source=store,
        name=store.name,
        closing=plan.closing,
        run_id="",
        rows=tuple(map(TableRow.of, plan.rows)),
        trials=plan.by_id(),
        records=latest(store.records() if records is None else records),
        duplicates=0,
    )
    study = Study((experiment,), *tabulate([experiment]), notes=())
    studies = None
    if experiment.studied:
        # Importing the statistics takes a second, and a suite with seeds does not need them here.
        from reports.studies import analyse_studies

        studies = analyse_studies(study)
        failures = [guard for block in studies.blocks for guard in block.guards]
    else:
        collapsed = collapses(study)
        failed = failed_references(study.all_cells, plain_lora(study.all_cells), collapsed)
        failures = [*failed.values(), *map(str, collapsed.values())]
    return Summary(
        closing=plan.closing,
        cells=study.cells,
        seeds=study.seeds,
        warnings=tuple(guards(experiment)),
        failures=tuple(dict.fromkeys(failures)),
        studies=studies,
    )
