"""Signs that a training did not work, or that its tuning did not look far enough: warnings beside results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.metrics import direction
from bench.store.records import Record
from bench.wire.found import SearchResult
from bench.wire.measures import Measure
from bench.wire.words import By, Status, Tag
from reports.artifacts import ablations
from reports.study import FLOOR, Experiment, TableRow, TaskAndBackbone, grouped
from reports.words import many

#: An adapter that changes outputs by a smaller share of their spread over examples did nothing.
STILL = 0.01

#: How many methods a warning names.
NAMED = 4


@dataclass(frozen=True)
class _Trained:
    """A row with its finished runs."""

    row: TableRow
    runs: Sequence[Record]
    #: What its state was selected by, and its points chosen by.
    by: By

    @property
    def validation(self) -> float | None:
        """The mean validation loss or score of the selected states; None where a run did not store it."""
        measure = Measure.SELECTED_LOSS if self.by == "loss" else Measure.SELECTED_VALIDATION
        values = [run.measure(measure) for run in self.runs]
        stored = [value for value in values if value is not None]
        return fmean(stored) if stored and len(stored) == len(values) else None


def guards(experiment: Experiment) -> Iterator[str]:
    """The warnings of an experiment, one for each kind and each task on its backbone."""
    settings = grouped(experiment.rows, lambda row: TaskAndBackbone(row.task, row.backbone))
    for setting, rows in settings.items():
        trained = [each for row in rows if (each := _trained(experiment, row)).runs]
        # A study's trials have different rates, so that their mean is no result.
        alike = [each for each in trained if each.row.studies is None]
        for warning in (*_below_the_head(alike), *_runs(trained), *_tuning(rows)):
            yield f"{setting}: {warning}"
    for _, result in ablations(experiment):
        if isinstance(result, SearchResult) and result.tied:
            yield f"{result.name}: {many(result.tied, 'other point')} tied with the best of the search."


def _trained(experiment: Experiment, row: TableRow) -> _Trained:
    records = [experiment.records.get(id_ or "") for id_ in row.trials.values()]
    runs = [record for record in records if record and record.status == Status.FINISHED]
    selects = {experiment.trials[id_].recipe.get("select") for id_ in row.trials.values() if id_}
    return _Trained(row, runs, "loss" if selects == {"loss"} else "score")


def _below_the_head(trained: Sequence[_Trained]) -> Iterator[str]:
    heads = [each for each in trained if each.row.family == FLOOR]
    for by in ("loss", "score"):
        of_heads = [value for each in heads if each.by == by and (value := each.validation) is not None]
        if not of_heads:
            continue
        sign = -1.0 if by == "loss" else direction(heads[0].runs[0].tag(Tag.METRIC))
        best = max(of_heads, key=lambda value: sign * value)
        behind = [
            each.row
            for each in trained
            if each.row.parameters
            and each.by == by
            and (value := each.validation) is not None
            and sign * value <= sign * best
        ]
        if behind:
            point = " at the chosen point" if any(row.tuning for row in behind) else ""
            yield f"validation {by}{point} no better than the head alone's ({best:.4g}): {_named(behind)}."


def _runs(trained: Sequence[_Trained]) -> Iterator[str]:
    """What single runs show."""
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


def _tuning(rows: Sequence[TableRow]) -> Iterator[str]:
    """What is known of the tuning by which rows were chosen."""
    few: defaultdict[tuple[int, int], list[TableRow]] = defaultdict(list)
    for row in rows:
        if row.tuning and row.tuning.trials < (rates := len(row.tuning.grids.get("lr", ()))):
            few[row.tuning.trials, rates].append(row)
    for (tried, rates), short in few.items():
        yield f"tuned at {many(tried, 'point')}, fewer than the {rates} rates of the grid: {_named(short)}."
    if tied := [row for row in rows if row.tuning and row.tuning.tied]:
        yield f"other points of tuning tied with the chosen one: {_named(tied)}."


def _named(rows: Sequence[TableRow]) -> str:
    names = list(dict.fromkeys(row.name for row in rows))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
