"""The first sentences of a report: which method is better, how certain that is, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tensorbench.methods.errors import first_few
from tensorbench.records.words import OWN_SIZE
from tensorbench.reports.analysis import Block
from tensorbench.reports.cautions import HEADS
from tensorbench.reports.units import Unit, minus
from tensorbench.reports.words import many

#: The largest number of methods that a sentence names for one budget.
MOST_NAMES = 1


def answer(blocks: Sequence[Block]) -> str:
    """Says which methods are significantly better than the reference.

    Further sentences say how far the reference is above a head, and how large a difference may be and still
    go undetected. The text is empty if no block has a comparison over all settings.
    """
    compared = _compared(blocks)
    if not compared:
        return ""
    references = dict.fromkeys(block.reference.method for block in compared if block.reference)
    against = next(iter(references)) if len(references) == 1 else "its reference"
    better = better_methods(compared)
    if better:
        named = (f"{first_few(names, MOST_NAMES)} ({heading})" for heading, names in better.items())
        lead = f"Significantly better than {against}: {'; '.join(named)}."
    elif not any(each.interval for block in compared for each in block.comparisons):
        lead = f"Nothing can be claimed: no difference from {against} has an interval."
    else:
        budgets = {block.budget for block in compared} - {OWN_SIZE}
        where = f" at any of {many(len(budgets), 'budget')}" if len(budgets) > 1 else ""
        lead = f"No method is significantly better than {against}{where}."
    return " ".join(filter(None, (lead, *map(above_head, compared), detectable(compared))))


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

    Empty if every block with known noise already detects that difference.
    """
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
