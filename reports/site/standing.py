"""Where each method stands: a line for each cell of each suite, with what is claimed of it against LoRA."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import pandas as pd

from reports.analysis import Analysis, Block
from reports.comparisons import AgainstReference
from reports.findings import Against, against
from reports.study import Cell
from reports.units import Unit, unit_of


@dataclass(frozen=True)
class Standing:
    """A cell with its place among the methods of its budget."""

    suite: str
    cell: Cell
    #: The budget, with what sets its block apart from others of the same budget.
    block: str
    #: What it is compared with; empty where there is no such thing.
    reference: str
    #: The difference from it on the cell's own task and backbone ...
    own: Against | None
    #: ... and over all settings of the budget, with the verdict; None of the reference itself.
    against: AgainstReference | None
    #: Methods that share a letter cannot be told apart; empty where nothing tells any.
    group: str
    #: What it lacks, and so is in no mean over all settings of its budget; empty where it lacks nothing.
    left_out: str = ""

    @property
    def unit(self) -> Unit:
        return unit_of(self.cell.metric, self.cell.unit)

    @property
    def is_reference(self) -> bool:
        return bool(self.reference) and self.against is None and self.cell.method == self.reference


def standings(suite: str, analysis: Analysis) -> list[Standing]:
    """One for each cell, the best of a setting first."""
    known = {
        standing.cell.number: standing
        for block in analysis.blocks
        for standing in _of(suite, analysis, block)
    }
    found = [
        known.get(cell.number)
        or Standing(suite, cell, cell.budget, "", None, None, "", _absent(analysis, cell))
        for cell in analysis.study.all_cells
    ]
    return sorted(found, key=lambda one: -math.inf if one.cell.gain is None else one.cell.gain, reverse=True)


def _of(suite: str, analysis: Analysis, block: Block) -> Iterator[Standing]:
    compared = {comparison.method: comparison for comparison in (*block.comparisons, *block.of_part)}
    letters = block.ranking.letters if block.ranking else None
    groups = dict(zip(block.methods, letters or (), strict=False))
    for method, cells in chain(block.cells.items(), block.cells_of_part.items()):
        comparison = compared.get(method)
        for place, number in enumerate(cells):
            yield Standing(
                suite=suite,
                cell=analysis.study.all_cells[number],
                block=block.title,
                reference=block.reference.method if block.reference else "",
                own=against(block, comparison, place) if comparison else None,
                against=comparison,
                group=groups.get(method, ""),
                left_out=block.left_out.get(method, ""),
            )


def _absent(analysis: Analysis, cell: Cell) -> str:
    reasons = (block.left_out.get(cell.method) for block in analysis.blocks if block.budget == cell.budget)
    return next((reason for reason in reasons if reason), "")


def frame(found: Sequence[Standing]) -> pd.DataFrame:
    """All of them as a table, numbers as they were stored."""
    return pd.DataFrame(map(_line, found))


def _line(standing: Standing) -> dict[str, object]:
    cell, own, over_all = standing.cell, standing.own, standing.against
    naming = ("task", "backbone", "budget", "method", "family", "ranks", "left")
    told = {name: getattr(cell, name) for name in naming}
    measured = ("parameters", "evaluated", "metric", "mean", "sd", "low", "high", "finished", "seeds")
    own_interval = (own and own.interval) or (None, None)
    interval = (over_all and over_all.interval) or (None, None)
    return {
        "suite": standing.suite,
        "cell": cell.number,
        **told,
        **{name: getattr(cell, name) for name in measured},
        "reference": standing.reference,
        "difference": own and own.effect.difference,
        "difference_low": own_interval[0],
        "difference_high": own_interval[1],
        "settings": over_all and len(over_all.effect.parts),
        "overall": over_all and over_all.effect.difference,
        "overall_low": interval[0],
        "overall_high": interval[1],
        "verdict": over_all and str(over_all.verdict),
        "group": standing.group,
    }
