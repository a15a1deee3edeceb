"""What findings.md shows of its rows in any case: edges of grids, missed budgets, failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from packed import Packed, number

from bench.wire.words import OWN_SIZE, Status
from reports.study import REFERENCE, Cell, Seed, grouped
from reports.words import listed, many

#: By how much a size may miss LoRA's.
TOLERANCE = 0.05
AXES = {"lr": "rate", "scale": "scale", "head_lr": "head rate"}


def cautions(packed: Packed, rows: Iterable[Cell]) -> str:
    """A sentence for each; that nothing failed is said as well."""
    cells = list({cell.number: cell for cell in rows}.values())
    return " ".join(filter(None, [_edges(cells), _missed(cells), _failed(packed, cells)]))


def _edges(cells: Sequence[Cell]) -> str:
    tuned = [cell.tuning for cell in cells if cell.tuning and cell.tuning.chosen]
    if not tuned:
        return ""
    count = Counter(axis for one in tuned for axis in one.edge)
    on = listed(f"{count[axis]} in {name}" for axis, name in AXES.items() if count[axis])
    at = sum(bool(one.edge) for one in tuned)
    return f"Chosen on an edge of the grid: {at} of {many(len(tuned), 'point')}{f' ({on})' * bool(on)}."


def _missed(cells: Sequence[Cell]) -> str:
    shares = grouped(
        ((cell.method, share) for cell in cells if (share := _share(cell)) is not None), lambda pair: pair[0]
    )
    told = [
        f"{method} ({' and '.join(dict.fromkeys(number(share) for _, share in some))} of it)"
        for method, some in shares.items()
    ]
    return f"Not at the budget: {listed(told)}." if told else ""


def _share(cell: Cell) -> float | None:
    """Of its budget, where it misses it; None where it does not.

    LoRA on other sites has its own size, which is to be that of LoRA.
    """
    if cell.budget == OWN_SIZE and cell.family == REFERENCE:
        share = cell.percent_of_lora / 100
        return share if abs(share - 1) > TOLERANCE else None
    return cell.ratio if cell.within is False else None


def _failed(packed: Packed, cells: Sequence[Cell]) -> str:
    told = [
        f"{cell.method} on {cell.task}, seed {listed(seed.seed for seed in seeds)} ({why})"
        for cell in cells
        for why, seeds in grouped(_failures(packed, cell), lambda seed: seed.failure).items()
    ]
    return f"Failed or diverged: {'; '.join(told) or 'nothing'}."


def _failures(packed: Packed, cell: Cell) -> Iterator[Seed]:
    known = packed.study.of_cell(cell.number) if packed.study else ()
    return (seed for seed in known if seed.status == Status.FAILED)
