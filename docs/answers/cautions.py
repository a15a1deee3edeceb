"""The cautions that evidence.md adds to its answers: edges of grids, missed budgets, bad trainings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from bench.metrics import direction
from bench.records.words import OWN_SIZE, Status
from reports.inference.intervals import RESOLUTION
from reports.study import FLOOR, REFERENCE, Cell, Seed, grouped
from reports.units import PERCENT, unit_of
from reports.words import listed, many

from .packed import Packed, number
from .questions import HEAD_ONLY

#: The allowed deviation of a row's parameter count from LoRA's, as a share of LoRA's.
TOLERANCE = 0.05
#: The largest difference in score from the head alone at which an adapter counts as hardly moved.
STILL = 0.001
AXES = {"lr": "rate", "scale": "scale", "head_lr": "head rate"}


def cautions(packed: Packed, rows: Iterable[Cell]) -> str:
    """A sentence for each caution that applies to rows with an ended seed. Empty if no seed has ended."""
    cells = list({cell.number: cell for cell in rows if cell.missing < cell.seeds}.values())
    if not cells:
        return ""
    sentences = [
        _edges(cells),
        _missed(cells),
        _failed(packed, cells),
        _collapsed(packed, cells),
        _still(packed, cells),
    ]
    return " ".join(filter(None, sentences))


def _edges(cells: Sequence[Cell]) -> str:
    tuned = [cell.tuning for cell in cells if cell.tuning and cell.tuning.chosen]
    if not tuned:
        return ""
    count = Counter(axis for row in tuned for axis in row.edge)
    on = listed(f"{count[axis]} in {name}" for axis, name in AXES.items() if count[axis])
    at = sum(bool(row.edge) for row in tuned)
    return f"Chosen on an edge of the grid: {at} of {many(len(tuned), 'point')}{f' ({on})' * bool(on)}."


def _missed(cells: Sequence[Cell]) -> str:
    shares = grouped(
        ((cell.method, share) for cell in cells if (share := _share(cell)) is not None), lambda pair: pair[0]
    )
    methods = [
        f"{method} ({' and '.join(dict.fromkeys(number(share) for _, share in shares_of_method))} of it)"
        for method, shares_of_method in shares.items()
    ]
    return f"Not at the budget: {listed(methods)}." if methods else ""


def _share(cell: Cell) -> float | None:
    """The share of its budget that a row uses if it misses the budget, else None.

    LoRA on other sites has no budget, since its size is fixed. Its share is that of LoRA's parameters.
    """
    if cell.budget == OWN_SIZE and cell.family == REFERENCE:
        share = cell.percent_of_lora / 100
        return share if abs(share - 1) > TOLERANCE else None
    return cell.ratio if cell.within is False else None


def _failed(packed: Packed, cells: Sequence[Cell]) -> str:
    methods = [
        _seeds(cell, seeds, f" ({why})")
        for cell in cells
        for why, seeds in grouped(_seeds_of(packed, cell, Status.FAILED), lambda seed: seed.failure).items()
    ]
    return f"Failed or diverged: {'; '.join(methods)}." if methods else ""


def _collapsed(packed: Packed, cells: Sequence[Cell]) -> str:
    """How many seeds are below the mean of the head alone, as text. Empty if no row can be compared."""
    collapsed: Counter[str] = Counter()
    tasks = {cell.task: False for cell in cells}
    for cell in cells:
        floor = _floor(packed, cell)
        if floor is None or floor.gain is None:
            continue
        tasks[cell.task] = True
        turned = direction(cell.metric)
        below = [
            seed
            for seed in _seeds_of(packed, cell, Status.FINISHED)
            if seed.score is not None and turned * seed.score < floor.gain - RESOLUTION
        ]
        collapsed[cell.task] += len(below)
    on = [task for task, compared in tasks.items() if compared]
    where = f", compared on {listed(on)}" * (len(on) < len(tasks))
    counts = listed(f"{many(count, 'seed')} on {task}" for task, count in collapsed.items() if count)
    return f"Below the mean of the head alone{where}: {counts or 'no seed'}." if on else ""


def _still(packed: Packed, cells: Sequence[Cell]) -> str:
    """The complete rows that score like the head alone on every seed, as text. Empty if there are none.

    The adapters of such rows hardly moved.
    """
    cells_at_head = []
    for cell in cells:
        floor = _floor(packed, cell)
        if floor is None or not cell.complete or not unit_of(cell.metric).mark:
            continue
        own, bare = packed.gains(cell), packed.gains(floor)
        if own.keys() <= bare.keys() and all(abs(own[seed] - bare[seed]) <= STILL for seed in own):
            cells_at_head.append(f"{cell.method} on {cell.task}")
    points = number(PERCENT.factor * STILL)
    return (
        f"Within {points} points of the head alone on every seed: {listed(cells_at_head)}."
        if cells_at_head
        else ""
    )


def _floor(packed: Packed, cell: Cell) -> Cell | None:
    """The head alone on a row's setting. None for the head itself, and if the head lacks finished seeds."""
    floor = packed.cells(cell.task, cell.budget).get(HEAD_ONLY)
    if floor is None or not floor.complete or floor.setting != cell.setting or cell.family == FLOOR:
        return None
    return floor


def _seeds_of(packed: Packed, cell: Cell, status: Status) -> Iterator[Seed]:
    stored_seeds = packed.study.of_cell(cell.number) if packed.study else ()
    return (seed for seed in stored_seeds if seed.status == status)


def _seeds(cell: Cell, seeds: Sequence[Seed], why: str = "") -> str:
    numbers = listed(seed.seed for seed in seeds)
    return f"{cell.method} on {cell.task}, seed{'s' * (len(seeds) > 1)} {numbers}{why}"
