"""The first sentences of a report: which method is better, how certain that is, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from tensorbench.methods.errors import first_few
from tensorbench.records.words import OWN_SIZE
from tensorbench.reports.analysis import Analysis, Block
from tensorbench.reports.comparisons import AgainstReference
from tensorbench.reports.guards import HEADS, failed_references, plain_lora, unbeaten
from tensorbench.reports.inference.effects import Answer
from tensorbench.reports.study import Cell, Study
from tensorbench.reports.units import Unit, minus
from tensorbench.reports.words import listed, many

#: The largest number of methods that a sentence names for one budget.
MOST_NAMES = 1
#: The largest number of methods without a verdict that a sentence names.
MOST_WITHHELD = 4
#: The largest number of guards with which the answer opens.
MOST_GUARDS = 2


def guards(blocks: Sequence[Block]) -> list[str]:
    """The guards of these blocks. If they differ, each begins with its block."""
    by_block = [dict.fromkeys(block.guards.sentences, block.heading) for block in _compared(blocks)]
    return list(
        dict.fromkeys(
            sentence if all(sentence in other for other in by_block) else f"{heading}: {sentence}"
            for of_block in by_block
            for sentence, heading in of_block.items()
        )
    )


def faults(analysis: Analysis) -> list[str]:
    """What comes before any claim: guards, failed references, and heads that no adapter beats."""
    study = analysis.study
    sentences = [*guards(analysis.blocks), *reference_failures(analysis), *unbeaten(study.all_cells)]
    return list(dict.fromkeys(sentences))


def answer(blocks: Sequence[Block]) -> str:
    """Says which methods are significantly better than the reference, after the first guards.

    Methods whose verdict is withheld are named. Further sentences say how far the reference is above a head,
    and how large a difference may be and still go undetected. The text is empty if no block has a comparison
    over all settings.
    """
    compared = _compared(blocks)
    if not compared:
        return ""
    references = dict.fromkeys(block.reference.method for block in compared if block.reference)
    against = next(iter(references)) if len(references) == 1 else "its reference"
    opening = guards(blocks)[:MOST_GUARDS]
    every = [each for block in compared for each in block.comparisons]
    withheld = [each.method for each in every if _withheld(each)]
    if len(withheld) == len(every):
        return " ".join([*opening, "No verdict is given on any method."])
    better = better_methods(compared)
    if better:
        named = (f"{first_few(names, MOST_NAMES)} ({heading})" for heading, names in better.items())
        lead = f"Significantly better than {against}: {'; '.join(named)}."
    elif not any(each.interval for each in every):
        lead = f"Nothing can be claimed: no difference from {against} has an interval."
    else:
        budgets = {block.budget for block in compared} - {OWN_SIZE}
        where = f" at any of {many(len(budgets), 'budget')}" if len(budgets) > 1 else ""
        lead = f"No method is significantly better than {against}{where}."
    if withheld:
        lead += f" No verdict is given on {first_few(list(dict.fromkeys(withheld)), MOST_WITHHELD)}."
    return " ".join(filter(None, (*opening, lead, *map(above_head, compared), detectable(compared))))


def above_head(block: Block) -> str:
    """A sentence on the difference of the reference from the best head without an adapter, with its interval.

    Empty if the block compares no head, or if the difference has no interval.
    """
    heads = [each for each in block.comparisons if each.family in HEADS and each.interval]
    best = max(heads, key=lambda each: each.effect.difference, default=None)
    if best is None or best.interval is None or block.reference is None:
        return ""
    unit, name = block.unit, f"{block.reference.method} is"
    low, high = (minus(unit.score(-bound, 1)) for bound in reversed(best.interval))
    head = f"{HEADS[best.family]} (interval {low} to {high})"
    if best.verdict.side == "worse":
        return f"{name} {unit.score(-best.effect.difference, 1)} {unit.points} above {head}."
    return f"{name} not shown to be above {head}."


def better_methods(blocks: Iterable[Block]) -> dict[str, list[str]]:
    """By the heading of the block, the methods significantly better than the reference over all settings.

    Blocks without such methods are left out.
    """
    better = {
        block.heading: [each.method for each in block.comparisons if each.verdict.side == "better"]
        for block in _compared(blocks)
    }
    return {heading: names for heading, names in better.items() if names}


def next_step(blocks: Sequence[Block]) -> str:
    """A sentence on the seeds or data that are needed to detect a difference as large as the threshold.

    Where no verdict is given, it is on what adapters need to train. Empty if every block with known noise
    already detects that difference.
    """
    every = [each for block in _compared(blocks) for each in block.comparisons]
    if every and all(map(_withheld, every)):
        return "Take more examples, more epochs or other learning rates, until an adapter beats a head."
    undecided = [
        block
        for block in _compared(blocks)
        if block.design and block.design.finds and block.design.finds > block.threshold
    ]
    if not undecided:
        return ""
    sizes = {block.unit.size(block.threshold) for block in undecided}
    size = f"a difference of {next(iter(sizes))}" if len(sizes) == 1 else "a difference of the threshold"
    seeds = [block.design.needs(block.threshold) for block in undecided if block.design]
    needed = [count for count in seeds if count is not None]
    if not needed:
        return f"To detect {size}, more seeds are not enough: add tasks, test examples or studies."
    most = max(needed)
    enough = (
        f"take {most:,} seeds"
        if len(needed) == len(seeds)
        else f"take {most:,} seeds, and more test examples"
    )
    return f"To detect {size}, {enough}."


def _withheld(comparison: AgainstReference) -> bool:
    return comparison.verdict.answer is Answer.NONE and bool(comparison.verdict.reason)


def _compared(blocks: Iterable[Block]) -> list[Block]:
    return [block for block in blocks if block.reference and block.comparisons]


def detectable(blocks: Iterable[Block]) -> str:
    """A sentence on the smallest differences that these blocks detect. Empty if no block's noise is known."""
    by_unit: dict[Unit, list[float]] = {}
    for block in blocks:
        if block.design and block.design.finds:
            by_unit.setdefault(block.unit, []).append(block.design.finds)
    sizes = (
        f"{' to '.join(dict.fromkeys(unit.score(end, 1) for end in (min(finds), max(finds))))} {unit.points}"
        for unit, finds in by_unit.items()
    )
    return f"True differences smaller than {' and '.join(sizes)} may go undetected." if by_unit else ""


# --- failed references ---


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
