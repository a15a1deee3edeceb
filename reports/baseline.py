"""A baseline that failed: where the reference is no better than a head alone, or runs of it collapsed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from reports.collapses import Collapses
from reports.converged import NO_ADAPTERS
from reports.study import CONVERGED, FLOOR, OWN_SIZE, REFERENCE, Cell
from reports.units import minus, unit_of
from reports.words import listed

if TYPE_CHECKING:
    # It brings in what makes the statistics, which a table at the terminal needs nothing of.
    from reports.analysis import Analysis, Block

#: What a reference's failure means for differences from it: if runs of it collapsed, and if none did.
OF_FAILED_RUNS = "Differences from it there measure its failed runs."
OF_NO_BETTER = "Differences there are from a baseline that does no better than a head."

#: The heads that every adapter has to beat.
HEADS = {FLOOR: "the head alone", CONVERGED: "the converged head"}


def plain(cells: Iterable[Cell]) -> list[Cell]:
    """Plain LoRA, which others are compared with unless another reference is named."""
    return [cell for cell in cells if cell.family == REFERENCE and cell.method == cell.title]


def failed(
    cells: Sequence[Cell], references: Iterable[Cell], collapses: Mapping[int, Collapses]
) -> list[str]:
    """A sentence for each of these references that failed. `collapses`: by cell."""
    return list(_failures(cells, references, collapses).values())


def of_analysis(analysis: Analysis) -> list[str]:
    """The same of the references of all blocks, with the best mean of each block with and without the task
    on which its reference failed.
    """
    study = analysis.study
    used = [number for block in analysis.blocks if block.reference for number in block.reference.cells]
    references = [study.all_cells[number] for number in dict.fromkeys(used)]
    sentences = _failures(study.all_cells, references, analysis.collapses)
    tasks = {cell.number: cell.task for cell in references if cell.number in sentences}
    return [*sentences.values(), *(mean for block in analysis.blocks for mean in _means(block, tasks))]


def _failures(
    cells: Sequence[Cell], references: Iterable[Cell], collapses: Mapping[int, Collapses]
) -> dict[int, str]:
    """The sentences by cell."""
    failures = {cell.number: _failure(cell, cells, collapses.get(cell.number)) for cell in references}
    return {
        number: f"{failure}. {OF_FAILED_RUNS if number in collapses else OF_NO_BETTER}"
        for number, failure in failures.items()
        if failure
    }


def _failure(cell: Cell, cells: Sequence[Cell], collapsed: Collapses | None) -> str:
    """How a reference failed on its setting; empty if it did not."""
    if cell.family in NO_ADAPTERS or cell.gain is None:
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
        if best is not None and (best.gain or 0.0) > cell.gain:
            reasons.append(f"it is below {name} ({unit.score(cell.mean)} against {unit.score(best.mean)})")
            break
    if collapsed is not None:
        reasons.append(collapsed.counted)
    name = cell.method if cell.budget == OWN_SIZE else f"{cell.method} ({cell.budget})"
    # Means that are near one another show no failure.
    what = "scored no better than a head" if collapsed is None else "failed"
    return f"{name} {what} on {cell.setting}: {'; '.join(reasons)}" if reasons else ""


def _means(block: Block, tasks: Mapping[int, str]) -> Iterator[str]:
    """`tasks`: those on which a reference failed, by its cell."""
    methods = [comparison for comparison in block.comparisons if comparison.family not in HEADS]
    if block.reference is None or not methods:
        return
    on = dict.fromkeys(tasks[number] for number in block.reference.cells if number in tasks)
    best = max(methods, key=lambda comparison: comparison.effect.difference)
    means = {rest.task: rest.difference for rest in best.without}
    points = block.unit.difference
    without = [f"{minus(points(means[task]))} without {task}" for task in on if task in means]
    if without:
        mean = minus(points(best.effect.difference))
        yield (
            f"{block.heading}: the mean difference of {best.method} from {block.reference.method} is {mean} "
            f"{block.unit.points} over all tasks, {listed(without)}."
        )
