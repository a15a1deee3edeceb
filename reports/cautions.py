"""Warnings about results: failed trainings, failed references, and heads that no adapter beats."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from tensorbench.methods.errors import first_few
from tensorbench.metrics import direction
from tensorbench.records.measures import Measure
from tensorbench.records.record import Record
from tensorbench.records.words import By, Status, Tag
from tensorbench.reports import ablation
from tensorbench.reports.choice import ties
from tensorbench.reports.study import (
    CONVERGED,
    FLOOR,
    NO_ADAPTERS,
    OWN_SIZE,
    REFERENCE,
    Cell,
    Experiment,
    Study,
    TableRow,
    TaskAndBackbone,
    grouped,
)
from tensorbench.reports.units import minus, unit_of
from tensorbench.reports.words import listed, many

if TYPE_CHECKING:
    # Importing the statistics takes a second, and tables at the terminal do not need them.
    from tensorbench.reports.analysis import Analysis, Block
    from tensorbench.reports.collapses import Collapses

#: An adapter hardly acts if it changes outputs by less than this share of their spread over examples.
STILL = 0.01

#: The heads that every adapter should beat: their families, with names for sentences.
HEADS = {FLOOR: "the head alone", CONVERGED: "the converged head"}

#: Sentences on differences from a failed reference, for collapsed runs and for a mean below a head's.
OF_FAILED_RUNS = "Differences from it there measure its failed runs."
OF_NO_BETTER = "Differences there are from a baseline that does no better than a head."
#: The sentence for a reference without a finished run.
OF_NO_SCORE = "It has no score there, so nothing is compared with it."


# --- trainings and tunings ---


@dataclass(frozen=True)
class _Trained:
    """A row of the plan, with the records of its finished runs."""

    row: TableRow
    runs: Sequence[Record]
    #: The validation measure ("loss" or "score") that selected the runs' epochs and the point of tuning.
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
    """Yields warnings about trainings, tunings and ties in searches.

    A warning about trainings or tunings names its setting and up to four of the methods concerned.
    Raises UserError for a malformed result of a search or an allocation.
    """
    settings = grouped(experiment.rows, lambda row: TaskAndBackbone(row.task, row.backbone))
    for setting, rows in settings.items():
        trained = [each for row in rows if (each := _trained(experiment, row)).runs]
        # A study's trials have different learning rates, so their mean is no result.
        of_seeds = [each for each in trained if each.row.studies is None]
        for warning in (*_below_the_head(of_seeds), *_runs(trained), *_tuning(rows)):
            yield f"{setting}: {warning}"
    for _, result in ablation.results(experiment):
        if tied := str(ties(experiment, result)):
            yield f"{result.name}: {tied}"


def _trained(experiment: Experiment, row: TableRow) -> _Trained:
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
            point = " at the chosen point" if any(row.tuning for row in behind) else ""
            yield f"validation {by}{point} no better than the head alone's ({best:.4g}): {_named(behind)}."


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


def _tuning(rows: Sequence[TableRow]) -> Iterator[str]:
    """Yields warnings about tunings with too few points, and about ties for the chosen point."""
    few: defaultdict[tuple[int, int], list[TableRow]] = defaultdict(list)
    for row in rows:
        if row.tuning and row.tuning.trials < (rates := len(row.tuning.grids.get("lr", ()))):
            few[row.tuning.trials, rates].append(row)
    for (points, rates), short in few.items():
        yield f"tuned at {many(points, 'point')}, fewer than the {rates} rates of the grid: {_named(short)}."
    if tied := [row for row in rows if row.tuning and row.tuning.tied]:
        yield f"other points of tuning tied with the chosen one: {_named(tied)}."


def _named(rows: Sequence[TableRow]) -> str:
    return first_few(list(dict.fromkeys(row.name for row in rows)), 4)


# --- baselines ---


def plain_lora(cells: Iterable[Cell]) -> list[Cell]:
    """The cells of plain LoRA (LoRA without options), which is the default reference."""
    return [cell for cell in cells if cell.family == REFERENCE and cell.method == cell.title]


def failed_references(
    cells: Sequence[Cell], references: Iterable[Cell], collapses: Mapping[int, Collapses]
) -> dict[int, str]:
    """A sentence for each reference that failed, by the number of its cell.

    A reference has failed if some of its runs collapsed, or if its mean is not above that of a head on the
    same setting (see `HEADS`). Methods without an adapter, and cells without a run that ended, never count as
    failed.

    `cells` are all cells of the report. `collapses` has the collapsed runs by the number of the cell.
    """
    sentences = {}
    for cell in references:
        if failure := _failure(cell, cells, collapses.get(cell.number)):
            rest = OF_FAILED_RUNS if cell.number in collapses else OF_NO_BETTER
            sentences[cell.number] = f"{failure}. {OF_NO_SCORE if cell.gain is None else rest}"
    return sentences


def reference_failures(analysis: Analysis) -> list[str]:
    """Sentences about failed references, then about their effect on mean differences.

    A cell of LoRA or of a named reference that collapsed entirely has failed as well: no block can use it.

    For each block with several tasks and a failed reference, a sentence has the best mean difference: over
    all tasks, and without each task on which the reference failed.
    """
    study = analysis.study
    used = [number for block in analysis.blocks if block.reference for number in block.reference.cells]
    lost = [
        cell.number
        for cell in _possible_references(study)
        if not cell.finished and cell.number in analysis.collapses
    ]
    references = [study.all_cells[number] for number in dict.fromkeys([*used, *lost])]
    sentences = failed_references(study.all_cells, references, analysis.collapses)
    tasks = {cell.number: cell.task for cell in references if cell.number in sentences}
    return [*sentences.values(), *(mean for block in analysis.blocks for mean in _means(block, tasks))]


def _possible_references(study: Study) -> Iterator[Cell]:
    """Yields the cells of each named reference, and of plain LoRA if it is a reference."""
    for name in study.compared:
        named = (cell for cell in study.all_cells if cell.method == name)
        yield from named if name else plain_lora(study.all_cells)


def _failure(cell: Cell, cells: Sequence[Cell], collapsed: Collapses | None) -> str:
    """Says how a reference failed (see `failed_references`). Empty if it did not."""
    if cell.family in NO_ADAPTERS:
        return ""
    unit, reasons = unit_of(cell.metric, cell.unit), []
    for family, name in HEADS.items():
        heads = [
            other
            for other in cells
            if (other.family, other.setting, other.metric) == (family, cell.setting, cell.metric)
            and other.gain is not None
        ]
        best = max(heads, key=lambda other: other.gain or 0.0, default=None)
        if best is not None and cell.gain is not None and (best.gain or 0.0) >= cell.gain:
            reasons.append(
                f"it is not above {name} ({unit.score(cell.mean)} against {unit.score(best.mean)})"
            )
            break
    if collapsed is not None:
        reasons.append(collapsed.counted)
    name = cell.method if cell.budget == OWN_SIZE else f"{cell.method} ({cell.budget})"
    # Means that are close to each other show no failure.
    verb = "scored no better than a head" if collapsed is None else "failed"
    return f"{name} {verb} on {cell.setting}: {'; '.join(reasons)}" if reasons else ""


def _means(block: Block, tasks: Mapping[int, str]) -> Iterator[str]:
    """Yields a sentence on the best mean difference with and without the tasks where the reference failed.

    `tasks` maps the number of each failed reference cell to the cell's task. There is no sentence if the
    reference did not fail, or if the block has a single task.
    """
    methods = [comparison for comparison in block.comparisons if comparison.family not in HEADS]
    if block.reference is None or not methods:
        return
    failed_on = dict.fromkeys(tasks[number] for number in block.reference.cells if number in tasks)
    best = max(methods, key=lambda comparison: comparison.effect.difference)
    means = {rest.task: rest.difference for rest in best.without}
    points = block.unit.difference
    without = [f"{minus(points(means[task]))} without {task}" for task in failed_on if task in means]
    if without:
        mean = minus(points(best.effect.difference))
        yield (
            f"{block.heading}: the mean difference of {best.method} from {block.reference.method} is {mean} "
            f"{block.unit.points} over all tasks, {listed(without)}."
        )


# --- the converged head ---


def unbeaten(cells: Iterable[Cell]) -> list[str]:
    """A sentence for each setting on which no adapter has a higher mean than the converged head.

    There is no sentence if the converged head has not run, or if runs of adapters are missing.
    """
    sentences = []
    for setting, of_setting in grouped(cells, lambda cell: cell.setting).items():
        head = next((cell for cell in of_setting if cell.family == CONVERGED and cell.gain is not None), None)
        adapters = [cell for cell in of_setting if cell.family not in NO_ADAPTERS]
        scored = [cell for cell in adapters if cell.gain is not None]
        if head is None or not scored or any(cell.missing for cell in adapters):
            continue
        best = max(scored, key=lambda cell: cell.gain or 0.0)
        if (best.gain or 0.0) <= (head.gain or 0.0):
            unit = unit_of(head.metric, head.unit)
            sentences.append(
                f"No adapter beats the converged head on {setting}: {unit.score(head.mean)} against "
                f"{unit.score(best.mean)} at best ({best.method})."
            )
    return sentences


def above_reference(study: Study, block: Block) -> float | None:
    """The converged head's mean difference from a block's reference. Positive if the head is better.

    None if the block has no reference, or if the head or the reference lacks a score on some setting.
    """
    if block.reference is None:
        return None
    differences = []
    for setting, number in zip(block.settings, block.reference.cells, strict=True):
        head, reference = study.converged_head(setting), study.all_cells[number]
        if head is None or head.gain is None or reference.gain is None:
            return None
        differences.append(head.gain - reference.gain)
    return float(np.mean(differences))
