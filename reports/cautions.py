"""Warnings about trainings after which the model is hardly better than without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from tensorbench.methods.errors import first_few
from tensorbench.records.measures import Measure
from tensorbench.records.metrics import direction
from tensorbench.records.record import Record
from tensorbench.records.stored_plan import Row
from tensorbench.records.words import Status, Tag
from tensorbench.reports.results import FLOOR, Experiment, TaskAndBackbone, grouped
from tensorbench.reports.units import many

#: An adapter hardly acts if it changes outputs by less than this share of their spread over examples.
STILL = 0.01


#: A row of the plan with the records of its finished runs.
Trained = tuple[Row, list[Record]]


def guards(experiment: Experiment) -> Iterator[str]:
    """Yields warnings about an experiment's trainings.

    Each warning names its setting and up to four of the methods concerned.
    """
    settings = grouped(experiment.rows, lambda row: TaskAndBackbone(row.task, row.backbone))
    for setting, rows in settings.items():
        trained: list[Trained] = []
        for row in rows:
            records = [experiment.records.get(id_) for id_ in row.trials.values()]
            runs = [record for record in records if record and record.status == Status.FINISHED]
            trained += [(row, runs)] if runs else []
        for warning in (*_below_the_head(experiment, trained), *_runs(trained)):
            yield f"{setting}: {warning}"


def _below_the_head(experiment: Experiment, trained: Sequence[Trained]) -> Iterator[str]:
    """Yields warnings about rows whose mean validation result is no better than that of the head alone.

    The result is the loss or the score, whichever selected the runs' epochs.
    """
    by_loss: list[tuple[Row, float]] = []
    by_score: list[tuple[Row, float]] = []
    for row, runs in trained:
        selects = {experiment.trials[id_].recipe.get("select") for id_ in row.trials.values()}
        loss = selects == {"loss"}
        measure = Measure.SELECTED_LOSS if loss else Measure.SELECTED_VALIDATION
        values = [value for run in runs if (value := run.measure(measure)) is not None]
        # A study's trials have different learning rates, so their mean is no result.
        if len(values) == len(runs) and row.studies is None:
            (by_loss if loss else by_score).append((row, fmean(values)))
    for by, means in (("loss", by_loss), ("score", by_score)):
        if not (heads := [value for row, value in means if row.family == FLOOR]):
            continue
        sign = -1.0 if by == "loss" else direction(trained[0][1][0].tag(Tag.METRIC))
        best = max(heads, key=lambda value: sign * value)
        behind = [row for row, value in means if row.parameters and sign * value <= sign * best]
        if behind:
            yield f"validation {by} no better than the head alone's ({best:.4g}): {_named(behind)}."


def _runs(trained: Sequence[Trained]) -> Iterator[str]:
    """Yields warnings about runs whose adapter hardly acts, or whose loss is no lower than by guessing."""

    def still(run: Record) -> bool:
        effect = run.measure(Measure.ADAPTER_EFFECT)
        return effect is not None and effect < STILL

    def guessing(run: Record) -> bool:
        loss, of_guessing = run.measure(Measure.SELECTED_LOSS), run.measure(Measure.GUESSING_LOSS)
        return loss is not None and of_guessing is not None and loss >= of_guessing

    signs: dict[str, Callable[[Record], bool]] = {
        f"the adapter changes outputs by less than {STILL:.0%} of their spread": still,
        "the validation loss is no lower than that of a constant answer": guessing,
    }
    for sign, shown in signs.items():
        if rows := [row for row, runs in trained if any(map(shown, runs))]:
            count = sum(shown(run) for _, runs in trained for run in runs)
            yield f"{sign} in {many(count, 'run')}: {_named(rows)}."


def _named(rows: Sequence[Row]) -> str:
    return first_few(list(dict.fromkeys(row.name for row in rows)), 4)
