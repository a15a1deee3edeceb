"""The content of the page's heat maps, forest plots and tables of results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter

from tensorbench.reports.analysis import Analysis, Block
from tensorbench.reports.comparisons import AgainstReference
from tensorbench.reports.drawing import SERIES, Looks
from tensorbench.reports.figures.cost import PARAMETERS
from tensorbench.reports.findings import Against, against, on_part
from tensorbench.reports.inference.intervals import RESOLUTION
from tensorbench.reports.ranking import pareto
from tensorbench.reports.study import Cell, Study, TaskAndBackbone, block_order, grouped
from tensorbench.reports.units import unit_of

#: A field of a heat map has the full colour if its difference is at least this many times the threshold.
FULL_COLOUR = 4


@dataclass(frozen=True)
class Shade:
    """A coloured field of a heat map, which shows one difference from the reference."""

    against: Against
    #: The strength of the colour, from 0 (none) to 1 (full).
    share: float
    #: The number of the method's cell. None if the field shows the mean over settings.
    cell: int | None


@dataclass(frozen=True)
class HeatRow:
    """A method's row in a heat map."""

    #: The method's cell on the first of its settings.
    cell: Cell
    #: The mean over settings. None for the reference, and for methods without runs on some settings.
    mean: Shade | None
    #: One field per setting, or None if the method has no run there. Empty for the reference.
    shades: tuple[Shade | None, ...]
    #: On how many settings the method ran, such as "on 2 of 3 tasks". Empty if it ran on all.
    on: str = ""


@dataclass(frozen=True)
class Heat:
    """The heat map of one block. The method with the best mean difference is first.

    Methods without runs on some settings are last.
    """

    block: Block
    rows: tuple[HeatRow, ...]


def heats(analysis: Analysis) -> list[Heat]:
    """The heat maps of all blocks with comparisons."""
    return [_heat(analysis.study, block) for block in analysis.blocks if block.claims]


def _heat(study: Study, block: Block) -> Heat:
    rows = []
    for comparison in block.comparisons:
        mean = _shade(block, against(block, comparison), None)
        row = HeatRow(study.all_cells[comparison.cells[0]], mean, _shades(block, comparison))
        rows.append((comparison.effect.difference, row))
    reference = block.reference
    if reference is not None and reference.cells in block.cells.values():
        rows.append((0.0, HeatRow(study.all_cells[reference.cells[0]], None, ())))
    rows.sort(key=lambda row: -row[0])
    of_part = [
        HeatRow(
            study.all_cells[comparison.cells[0]], None, _shades(block, comparison), on_part(block, comparison)
        )
        for comparison in block.of_part
    ]
    return Heat(block, (*(row for _, row in rows), *of_part))


def _shades(block: Block, comparison: AgainstReference) -> tuple[Shade | None, ...]:
    on = {setting: place for place, setting in enumerate(comparison.settings)}
    return tuple(
        _shade(block, against(block, comparison, on[setting]), comparison.cells[on[setting]])
        if setting in on
        else None
        for setting in block.settings
    )


def _shade(block: Block, difference: Against, cell: int | None) -> Shade:
    full = FULL_COLOUR * block.threshold or 1.0
    return Shade(difference, round(min(1.0, abs(difference.effect.difference) / full), 3), cell)


@dataclass(frozen=True)
class Strip:
    """The positions of a value and its interval in a horizontal strip, in percent of the strip's width.

    `start` and `end` are the ends of the interval. They are None if there is no interval.
    """

    at: float
    start: float | None
    end: float | None

    @classmethod
    def of(cls, value: float, bounds: Sequence[float | None], low: float, high: float) -> Strip:
        """Places a value and its interval in a strip whose ends stand for `low` and `high`.

        `bounds` is the interval. It is (None, None) if there is no interval.
        """
        start, end = (None if bound is None else _position(bound, low, high) for bound in bounds)
        return cls(_position(value, low, high), start, end)


def _position(value: float, low: float, high: float) -> float:
    return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2)


@dataclass(frozen=True)
class BoardRow:
    """A method in a table of results."""

    cell: Cell
    #: The index of the method's colour in `drawing.SERIES`.
    colour: int
    #: Whether the method is on the Pareto front of score and parameters.
    pareto: bool
    #: The mean and its interval. None if no seed has finished.
    strip: Strip | None
    #: The differences from each reference with which the method is compared.
    against: tuple[Against, ...]
    #: Whether the method is a reference.
    reference: bool


@dataclass(frozen=True)
class Board:
    """A table of results on one setting, with the best mean first.

    Its methods are those of one block, or those of one budget that belong to no block.
    """

    title: str
    budget: str
    rows: tuple[BoardRow, ...]


def boards(analysis: Analysis) -> dict[TaskAndBackbone, list[Board]]:
    """The tables of results for each setting. Settings are in the plan's order.

    Scores of different tasks do not compare, so no table mixes tasks.
    """
    study = analysis.study
    looks = Looks(cell.family for cell in study.all_cells)
    front = {cell.number for cell in pareto(analysis.evidence, study.all_cells, PARAMETERS.of)}
    compared = grouped(chain.from_iterable(map(_compared, analysis.blocks)), itemgetter(0))
    references = {n for block in analysis.blocks if block.reference for n in block.reference.cells}

    def row(cell: Cell, scale: tuple[float, float]) -> BoardRow:
        return BoardRow(
            cell,
            looks.families.index(cell.family) % len(SERIES),
            cell.number in front,
            None if cell.mean is None else Strip.of(cell.mean, (cell.low, cell.high), *scale),
            tuple(difference for _, difference in compared.get(cell.number, ())),
            cell.number in references,
        )

    boards_of: dict[TaskAndBackbone, list[Board]] = {}
    for setting, cells in grouped(study.all_cells, lambda cell: cell.setting).items():
        scales = {unit: _scale(study, of_unit) for unit, of_unit in grouped(cells, _in_percent).items()}
        tables = grouped(cells, lambda cell: _title(analysis.blocks, cell))
        boards_of[setting] = [
            Board(
                title,
                of_block[0].budget,
                tuple(row(cell, scales[_in_percent(cell)]) for cell in sorted(of_block, key=_by_mean)),
            )
            for title, of_block in sorted(tables.items(), key=lambda table: block_order(table[1][0].budget))
        ]
    return boards_of


def _compared(block: Block) -> Iterator[tuple[int, Against]]:
    for comparison in block.all_comparisons:
        for place, cell in enumerate(comparison.cells):
            yield cell, against(block, comparison, place)


def _title(blocks: Sequence[Block], cell: Cell) -> str:
    """The title of the block that contains the cell. The cell's budget if no block contains it."""
    for block in blocks:
        left_out = block.left_out if cell.setting in block.settings else {}
        numbers = chain.from_iterable(block.cells.values())
        if block.budget == cell.budget and (cell.method in left_out or cell.number in numbers):
            return block.title
    return cell.budget


def _by_mean(cell: Cell) -> float:
    return math.inf if cell.gain is None else -cell.gain


def _scale(study: Study, cells: Sequence[Cell]) -> tuple[float, float]:
    """The scores at the two ends of a setting's strips: the range of all seeds' scores, with a margin."""
    scores = [seed.score for cell in cells for seed in study.finished(cell.number) if seed.score is not None]
    if not scores:
        return 0.0, 1.0
    low, high = min(scores), max(scores)
    size = 1.0 if _in_percent(cells[0]) else max(abs(low), abs(high))
    pad = max(0.08 * (high - low), 0.002 * size) or 1.0
    return low - pad, high + pad


def _in_percent(cell: Cell) -> bool:
    return bool(unit_of(cell.metric).mark)


@dataclass(frozen=True)
class Forest:
    """The forest plot of a block: each method's mean difference from the reference, centred on zero.

    Methods without runs on some settings are left out.
    """

    #: The difference at the right end of the scale, in units of the score. The left end is its negative.
    reach: float
    #: The positions of the differences −threshold and +threshold, in percent of the width.
    within: tuple[float, float]
    #: The difference of each method and its interval.
    strips: Mapping[str, Strip]


def forest(block: Block) -> Forest | None:
    """The forest plot of a block. None if the block has no comparisons over all settings."""
    if not block.comparisons:
        return None
    reach = _reach(block.comparisons, block.threshold)
    strips = {
        comparison.method: Strip.of(
            comparison.effect.difference, comparison.interval or (None, None), -reach, reach
        )
        for comparison in block.comparisons
    }
    within = (_position(-block.threshold, -reach, reach), _position(block.threshold, -reach, reach))
    return Forest(reach, within, strips)


def _reach(comparisons: Sequence[AgainstReference], threshold: float) -> float:
    """The difference at the right end of a forest plot. Only very wide intervals extend beyond it."""
    ends = [abs(end) for each in comparisons for end in each.interval or (each.effect.difference,)]
    farthest = max(abs(each.effect.difference) for each in comparisons)
    smallest = RESOLUTION * max(part.size for each in comparisons for part in each.effect.parts)
    return max(1.5 * threshold, min(1.05 * max(ends), 2.2 * farthest), smallest)
