"""Standings: for each cell of a suite, its score and the comparison of its method with the reference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tensorbench.machine.table import Table
from tensorbench.metrics import direction
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.answers import in_words, no_interval
from tensorbench.reports.blocks import Block, Comparison
from tensorbench.reports.inference.intervals import Bounds
from tensorbench.reports.results import Cell
from tensorbench.reports.units import Unit, unit_of


@dataclass(frozen=True)
class Gap:
    """A difference from the reference; positive is better."""

    difference: float
    interval: Bounds | None
    #: The text to show if there is no interval.
    reason: str
    #: The number of settings that the difference covers.
    settings: int = 1


@dataclass(frozen=True)
class Standing:
    """A cell with its score, and the comparison of its method with the reference of its block."""

    suite: str
    cell: Cell
    #: The title of the block: the budget and, if needed, what distinguishes the block from others of this
    #: budget.
    block: str
    #: The mean over seeds, or the score after `k` trials of tuning, in stored units.
    score: float | None
    #: The score's 95% interval.
    interval: Bounds | None
    #: The number of trials of tuning. None for a mean over seeds.
    k: int | None = None
    #: The name of the reference. Empty if there is none.
    reference: str = ""
    is_reference: bool = False
    #: The difference from the reference on the cell's own setting.
    own: Gap | None = None
    #: The difference from the reference over all settings of the block.
    overall: Gap | None = None
    #: The verdict on `overall`, in words.
    verdict: str = ""
    #: "better" or "worse" if `overall` is significant. Otherwise empty.
    side: str = ""
    #: The reason why the method is missing from the means over all settings. Empty if it is not missing.
    left_out: str = ""

    @property
    def unit(self) -> Unit:
        return unit_of(self.cell.metric, self.cell.unit)


def standings(suite: str, analysis: Analysis) -> list[Standing]:
    """A standing for each cell of a suite, best score first. Cells without a score come last."""
    compared = {line.cell.number: line for line in _compared(suite, analysis)}
    every = [
        compared.get(cell.number) or _uncompared(suite, analysis, cell) for cell in analysis.results.all_cells
    ]
    return sorted(every, key=_gain, reverse=True)


def _gain(standing: Standing) -> float:
    return -math.inf if standing.score is None else direction(standing.cell.metric) * standing.score


def _uncompared(suite: str, analysis: Analysis, cell: Cell) -> Standing:
    cell = _with_metric(analysis, cell.number)
    score = analysis.score(cell.number)
    value, interval = (score.value, score.interval) if score else (None, None)
    return Standing(
        suite, cell, cell.budget, value, interval, cell.studies.points if score and cell.studies else None
    )


def _compared(suite: str, analysis: Analysis) -> Iterator[Standing]:
    for block in analysis.blocks:
        own = block.reference.cells if block.reference else ()
        for entrant in (*block.entrants, *block.part):
            found = entrant.differences.get(block.k)
            for place, number in enumerate(entrant.cells):
                score = entrant.scores[block.k][place]
                yield Standing(
                    suite,
                    _with_metric(analysis, number),
                    block.title,
                    score.value,
                    score.interval,
                    block.k if block.tuned else None,
                    reference=block.against,
                    is_reference=entrant.cells == own,
                    left_out=block.left_out.get(entrant.method, ""),
                    **(_claim(block, found, place) if found else {}),
                )
        for level in block.levels if block is analysis.blocks[0] else ():
            for place, of_level in enumerate(level.cells):
                if level.comparison and of_level is not None:
                    line = _uncompared(suite, analysis, analysis.results.all_cells[of_level])
                    yield replace(line, reference=block.against, **_claim(block, level.comparison, place))


def _with_metric(analysis: Analysis, number: int) -> Cell:
    """The cell with this number. If none of its trials finished, it has the metric of its setting."""
    return replace(analysis.results.all_cells[number], metric=analysis.results.metrics[number])


def _claim(block: Block, found: Comparison, place: int) -> dict[str, Any]:
    """The fields of a `Standing` that show a difference from the reference."""
    effect, reason = found.effect, no_interval(found)
    return {
        "own": Gap(effect.parts[place].difference, found.intervals[place], reason),
        "overall": Gap(effect.difference, found.interval, reason, len(effect.parts)),
        "verdict": in_words(found.verdict, block.unit.size(block.threshold)),
        "side": found.verdict.side,
    }


def table(lines: Sequence[Standing]) -> Table:
    """The standings as a table with a line for each. Scores are in stored units."""
    return Table("leaderboard", list(map(_line, lines)))


def _line(standing: Standing) -> dict[str, object]:
    cell, own, overall = standing.cell, standing.own, standing.overall
    naming = ("task", "backbone", "budget", "method", "family", "ranks", "left")
    return {
        "suite": standing.suite,
        "cell": cell.number,
        **{name: getattr(cell, name) for name in (*naming, "parameters", "evaluated", "metric")},
        "mean": standing.score,
        "sd": cell.sd,
        **_ends("", standing.interval),
        "trials_of_tuning": standing.k,
        "finished": cell.finished,
        "seeds": cell.seeds,
        "reference": standing.reference,
        "difference": own and own.difference,
        **_ends("difference_", own.interval if own else None),
        "settings": overall and overall.settings,
        "overall": overall and overall.difference,
        **_ends("overall_", overall.interval if overall else None),
        "verdict": standing.verdict or None,
    }


def _ends(prefix: str, interval: Bounds | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{prefix}low": low, f"{prefix}high": high}
