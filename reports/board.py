"""The page's tables of methods: differences as a heat map for each block, and results setting by setting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter

from reports.analysis import Analysis, Block
from reports.comparisons import AgainstReference
from reports.drawing import SERIES, Looks
from reports.figures.cost import PARAMETERS
from reports.findings import Against, against, on_part
from reports.inference.intervals import RESOLUTION
from reports.ranking import pareto
from reports.study import Cell, Study, TaskAndBackbone, block_order, grouped
from reports.units import unit_of

#: How many thresholds a difference has to be for the full colour of a heat map.
FULL_COLOUR = 4


@dataclass(frozen=True)
class Shade:
    """A difference from the reference as a field of a heat map."""

    against: Against
    #: 0 is no colour, 1 the full one.
    share: float
    #: The row of results that it is about; None of the mean over settings.
    cell: int | None


@dataclass(frozen=True)
class HeatRow:
    """A method of a heat map, named by its first cell."""

    cell: Cell
    #: None of the reference, and of a method that lacks settings.
    mean: Shade | None
    #: One a setting, None where it has not run; empty of the reference.
    shades: tuple[Shade | None, ...]
    #: On how many settings it has run, where it lacks some.
    on: str = ""


@dataclass(frozen=True)
class Heat:
    """Methods × settings of one block, the best mean first, and at last what lacks settings."""

    block: Block
    rows: tuple[HeatRow, ...]


def heats(analysis: Analysis) -> list[Heat]:
    """Heat maps of all blocks in which anything is compared."""
    return [_heat(analysis.study, block) for block in analysis.blocks if block.claims]


def _heat(study: Study, block: Block) -> Heat:
    rows = []
    for found in block.comparisons:
        shades = tuple(
            _shade(block, against(block, found, place), cell) for place, cell in enumerate(found.cells)
        )
        mean = _shade(block, against(block, found), None)
        rows.append((found.effect.difference, HeatRow(study.all_cells[found.cells[0]], mean, shades)))
    reference = block.reference
    if reference is not None and reference.cells in block.cells.values():
        rows.append((0.0, HeatRow(study.all_cells[reference.cells[0]], None, ())))
    rows.sort(key=lambda row: -row[0])
    return Heat(block, (*(row for _, row in rows), *(_part(study, block, found) for found in block.of_part)))


def _part(study: Study, block: Block, found: AgainstReference) -> HeatRow:
    on = {setting: place for place, setting in enumerate(found.settings)}
    shades = tuple(
        _shade(block, against(block, found, on[setting]), found.cells[on[setting]]) if setting in on else None
        for setting in block.settings
    )
    return HeatRow(study.all_cells[found.cells[0]], None, shades, on_part(block, found))


def _shade(block: Block, found: Against, cell: int | None) -> Shade:
    full = FULL_COLOUR * block.threshold or 1.0
    return Shade(found, round(min(1.0, abs(found.effect.difference) / full), 3), cell)


@dataclass(frozen=True)
class Strip:
    """Where a mean and its interval lie on the strip of their setting, in percent of its width."""

    at: float
    start: float | None
    end: float | None


@dataclass(frozen=True)
class BoardRow:
    """A method in a table of results."""

    cell: Cell
    #: The number of its colour.
    colour: int
    #: Whether it is on the front of score and parameters.
    pareto: bool
    #: None where no seed has finished.
    strip: Strip | None
    #: One for each reference that it is compared with; empty of what is not compared.
    against: tuple[Against, ...]
    reference: bool


@dataclass(frozen=True)
class Board:
    """The results of one block on one setting, the best mean first."""

    title: str
    budget: str
    rows: tuple[BoardRow, ...]


def boards(analysis: Analysis) -> dict[TaskAndBackbone, list[Board]]:
    """All results by setting, in the plan's order: no table ranks scores of different tasks."""
    study = analysis.study
    looks = Looks(cell.family for cell in study.all_cells)
    front = {cell.number for cell in pareto(analysis.evidence, study.all_cells, PARAMETERS.of)}
    compared = grouped(chain.from_iterable(map(_compared, analysis.blocks)), itemgetter(0))
    references = {n for block in analysis.blocks if block.reference for n in block.reference.cells}
    made: dict[TaskAndBackbone, list[Board]] = {}
    for setting, cells in grouped(study.all_cells, lambda cell: cell.setting).items():
        ranges = {mark: _scale(study, some) for mark, some in grouped(cells, _in_percent).items()}
        tables = grouped(cells, lambda cell: _title(analysis.blocks, cell))
        made[setting] = [
            Board(
                title,
                some[0].budget,
                tuple(
                    BoardRow(
                        cell,
                        looks.families.index(cell.family) % len(SERIES),
                        cell.number in front,
                        _strip(cell, *ranges[_in_percent(cell)]),
                        tuple(found for _, found in compared.get(cell.number, ())),
                        cell.number in references,
                    )
                    for cell in sorted(some, key=_by_mean)
                ),
            )
            for title, some in sorted(tables.items(), key=lambda table: block_order(table[1][0].budget))
        ]
    return made


def _compared(block: Block) -> Iterator[tuple[int, Against]]:
    for found in (*block.comparisons, *block.of_part):
        yield from ((cell, against(block, found, place)) for place, cell in enumerate(found.cells))


def _title(blocks: Sequence[Block], cell: Cell) -> str:
    """What tells the block of a cell from others of its setting."""
    for block in blocks:
        known = block.left_out if cell.setting in block.settings else {}
        if block.budget == cell.budget and (cell.method in known or cell.number in _numbers(block)):
            return block.title
    return cell.budget


def _numbers(block: Block) -> set[int]:
    return {number for numbers in block.cells.values() for number in numbers}


def _by_mean(cell: Cell) -> float:
    return math.inf if cell.gain is None else -cell.gain


def _scale(study: Study, cells: Sequence[Cell]) -> tuple[float, float]:
    """The range of a setting's strips: every seed is on it."""
    scores = [seed.score for cell in cells for seed in study.finished(cell.number) if seed.score is not None]
    if not scores:
        return 0.0, 1.0
    low, high = min(scores), max(scores)
    whole = 1.0 if _in_percent(cells[0]) else max(abs(low), abs(high))
    pad = max(0.08 * (high - low), 0.002 * whole) or 1.0
    return low - pad, high + pad


def _in_percent(cell: Cell) -> bool:
    return bool(unit_of(cell.metric).mark)


def _strip(cell: Cell, low: float, high: float) -> Strip | None:
    if cell.mean is None:
        return None
    ends = (cell.low, cell.high)
    start, end = (None if value is None else _place(value, low, high) for value in ends)
    return Strip(_place(cell.mean, low, high), start, end)


def _place(value: float, low: float, high: float) -> float:
    return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2)


@dataclass(frozen=True)
class Forest:
    """Where the differences of a block lie on one scale, in percent of its width."""

    #: Points at either end.
    reach: float
    #: The practical threshold to either side of zero.
    within: tuple[float, float]
    strips: Mapping[str, Strip]


def forest(block: Block) -> Forest | None:
    """The intervals of a block as strips; None where nothing is compared."""
    if not block.comparisons:
        return None
    reach = _reach(block.comparisons, block.threshold)
    strips = {}
    for found in block.comparisons:
        start, end = (
            (_place(bound, -reach, reach) for bound in found.interval) if found.interval else (None, None)
        )
        strips[found.method] = Strip(_place(found.effect.difference, -reach, reach), start, end)
    within = (_place(-block.threshold, -reach, reach), _place(block.threshold, -reach, reach))
    return Forest(reach, within, strips)


def _reach(found: Sequence[AgainstReference], threshold: float) -> float:
    """Far enough for every difference, and no farther than the widest interval."""
    ends = [abs(bound) for one in found for bound in one.interval or (one.effect.difference,)]
    farthest = max(abs(one.effect.difference) for one in found)
    smallest = RESOLUTION * max(part.size for one in found for part in one.effect.parts)
    return max(1.5 * threshold, min(1.05 * max(ends), 2.2 * farthest), smallest)
