"""Warnings about results: trainings that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from tensorbench.methods.errors import first_few
from tensorbench.metrics import direction
from tensorbench.records.measures import Measure
from tensorbench.records.record import Record
from tensorbench.records.stored_plan import Row
from tensorbench.records.words import By, Status, Tag
from tensorbench.reports.results import FLOOR, Experiment, TaskAndBackbone, grouped
from tensorbench.reports.words import many

#: An adapter hardly acts if it changes outputs by less than this share of their spread over examples.
STILL = 0.01


@dataclass(frozen=True)
class _Trained:
    """A row of the plan, with the records of its finished runs."""

    row: Row
    runs: Sequence[Record]
    #: The validation measure ("loss" or "score") that selected the runs' epochs.
    by: By

    @property
    def validation(self) -> float | None:
        """The mean validation loss or score (see `by`) of the selected epochs.

        None if there is no run, or if some run has not stored it.
        """
        measure = Measure.SELECTED_LOSS if self.by == "loss" else Measure.SELECTED_VALIDATION
        values = [run.measure(measure) for run in self.runs]
        stored = [value for value in values if value is not None]
        return fmean(stored) if stored and len(stored) == len(values) else None


def guards(experiment: Experiment) -> Iterator[str]:
    """Yields warnings about trainings.

    Each names its setting and up to four of the methods concerned.
    """
    settings = grouped(experiment.rows, lambda row: TaskAndBackbone(row.task, row.backbone))
    for setting, rows in settings.items():
        trained = [each for row in rows if (each := _trained(experiment, row)).runs]
        # A study's trials have different learning rates, so their mean is no result.
        of_seeds = [each for each in trained if each.row.studies is None]
        for warning in (*_below_the_head(of_seeds), *_runs(trained)):
            yield f"{setting}: {warning}"


def _trained(experiment: Experiment, row: Row) -> _Trained:
    records = [experiment.records.get(id_ or "") for id_ in row.trials.values()]
    runs = [record for record in records if record and record.status == Status.FINISHED]
    selects = {experiment.trials[id_].recipe.get("select") for id_ in row.trials.values() if id_}
    return _Trained(row, runs, "loss" if selects == {"loss"} else "score")


def _below_the_head(trained: Sequence[_Trained]) -> Iterator[str]:
    for by in ("loss", "score"):
        values = [
            (each, value) for each in trained if each.by == by and (value := each.validation) is not None
        ]
        heads = [(each, value) for each, value in values if each.row.family == FLOOR]
        if not heads:
            continue
        sign = -1.0 if by == "loss" else direction(heads[0][0].runs[0].tag(Tag.METRIC))
        best = max((value for _, value in heads), key=lambda value: sign * value)
        behind = [each.row for each, value in values if each.row.parameters and sign * value <= sign * best]
        if behind:
            yield f"validation {by} no better than the head alone's ({best:.4g}): {_named(behind)}."


def _runs(trained: Sequence[_Trained]) -> Iterator[str]:
    """Yields warnings about runs whose adapter hardly acts or whose loss is no better than guessing."""
    signs: dict[str, Callable[[Record], bool]] = {
        f"the adapter changes outputs by less than {STILL:.0%} of their spread": _still,
        "the validation loss is no lower than that of a constant answer": _guessing,
    }
    for sign, shown in signs.items():
        if rows := [each.row for each in trained if any(map(shown, each.runs))]:
            runs = sum(shown(run) for each in trained for run in each.runs)
            yield f"{sign} in {many(runs, 'run')}: {_named(rows)}."


def _still(run: Record) -> bool:
    effect = run.measure(Measure.ADAPTER_EFFECT)
    return effect is not None and effect < STILL


def _guessing(run: Record) -> bool:
    loss, guessing = run.measure(Measure.SELECTED_LOSS), run.measure(Measure.GUESSING_LOSS)
    return loss is not None and guessing is not None and loss >= guessing


def _named(rows: Sequence[Row]) -> str:
    return first_few(list(dict.fromkeys(row.name for row in rows)), 4)
