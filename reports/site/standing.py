"""Standings: for each cell of a suite, its score and the comparison of its method with the reference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import pandas as pd

from tensorbench.metrics import direction
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.comparisons import AgainstReference
from tensorbench.reports.findings import Against, against
from tensorbench.reports.inference.intervals import Bounds
from tensorbench.reports.studies import StudyAnalysis
from tensorbench.reports.study import Cell
from tensorbench.reports.study_blocks import Difference, StudyBlock
from tensorbench.reports.study_words import in_words
from tensorbench.reports.study_words import no_interval as no_study_interval
from tensorbench.reports.units import Unit, unit_of
from tensorbench.reports.words import no_interval


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
    #: The method's letters. Methods that share a letter are statistically indistinguishable. Empty if
    #: unknown.
    group: str = ""
    #: The reason why the method is missing from the means over all settings. Empty if it is not missing.
    left_out: str = ""

    @property
    def unit(self) -> Unit:
        return unit_of(self.cell.metric, self.cell.unit)


def standings(suite: str, analysis: Analysis | StudyAnalysis) -> list[Standing]:
    """A standing for each cell of a suite, best score first. Cells without a score come last."""
    lines = (
        _of_studies(suite, analysis) if isinstance(analysis, StudyAnalysis) else _of_seeds(suite, analysis)
    )
    compared = {line.cell.number: line for line in lines}
    every = [
        compared.get(cell.number) or _uncompared(suite, analysis, cell) for cell in analysis.study.all_cells
    ]
    return sorted(every, key=_gain, reverse=True)


def _gain(standing: Standing) -> float:
    return -math.inf if standing.score is None else direction(standing.cell.metric) * standing.score


def _uncompared(suite: str, analysis: Analysis | StudyAnalysis, cell: Cell) -> Standing:
    if isinstance(analysis, StudyAnalysis):
        cell = _with_metric(analysis, cell.number)
        score = analysis.score(cell.number)
        value, interval = (score.value, score.interval) if score else (cell.mean, _bounds(cell))
        k = cell.studies.points if score and cell.studies else None
        return Standing(suite, cell, cell.budget, value, interval, k)
    reasons = (block.left_out.get(cell.method) for block in analysis.blocks if block.budget == cell.budget)
    left_out = next((reason for reason in reasons if reason), "")
    return Standing(suite, cell, cell.budget, cell.mean, _bounds(cell), left_out=left_out)


def _bounds(cell: Cell) -> Bounds | None:
    return None if cell.low is None or cell.high is None else (cell.low, cell.high)


def _of_seeds(suite: str, analysis: Analysis) -> Iterator[Standing]:
    for block in analysis.blocks:
        compared = {comparison.method: comparison for comparison in (*block.comparisons, *block.of_part)}
        letters = block.ranking.letters if block.ranking else None
        groups = dict(zip(block.methods, letters or (), strict=False))
        reference = block.reference.method if block.reference else ""
        for method, cells in chain(block.cells.items(), block.cells_of_part.items()):
            comparison = compared.get(method)
            for place, number in enumerate(cells):
                cell = analysis.study.all_cells[number]
                yield Standing(
                    suite,
                    cell,
                    block.title,
                    cell.mean,
                    _bounds(cell),
                    reference=reference,
                    is_reference=bool(reference) and comparison is None and method == reference,
                    own=_gap(against(block, comparison, place)) if comparison else None,
                    overall=_gap(comparison) if comparison else None,
                    verdict=str(comparison.verdict) if comparison else "",
                    side=comparison.verdict.side if comparison else "",
                    group=groups.get(method, ""),
                    left_out=block.left_out.get(method, ""),
                )


def _gap(compared: Against | AgainstReference) -> Gap:
    effect = compared.effect
    return Gap(effect.difference, compared.interval, no_interval(effect.fewest), len(effect.parts))


def _of_studies(suite: str, analysis: StudyAnalysis) -> Iterator[Standing]:
    for block in analysis.blocks:
        own = block.reference.cells if block.reference else ()
        for entrant in block.entrants:
            difference = entrant.differences.get(block.k)
            for place, number in enumerate(entrant.cells):
                score = entrant.scores[block.k][place]
                yield Standing(
                    suite,
                    _with_metric(analysis, number),
                    block.title,
                    score.value,
                    score.interval,
                    block.k,
                    reference=block.against,
                    is_reference=entrant.cells == own,
                    **(_study_claim(block, difference, place) if difference else {}),
                )


def _with_metric(analysis: StudyAnalysis, number: int) -> Cell:
    """The cell with this number. If none of its trials finished, it has the metric of its setting."""
    return replace(analysis.study.all_cells[number], metric=analysis.study.metrics[number])


def _study_claim(block: StudyBlock, difference: Difference, place: int) -> dict[str, Any]:
    """The fields of a `Standing` that show a difference from the reference."""
    effect, reason = difference.effect, no_study_interval(difference)
    return {
        "own": Gap(effect.parts[place].difference, difference.intervals[place], reason),
        "overall": Gap(effect.difference, difference.interval, reason, len(effect.parts)),
        "verdict": in_words(difference.verdict, block.unit.size(block.threshold)),
        "side": difference.verdict.side,
    }


def frame(lines: Sequence[Standing]) -> pd.DataFrame:
    """The standings as a table with a line for each. Scores are in stored units."""
    return pd.DataFrame(map(_line, lines))


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
        "group": standing.group,
    }


def _ends(prefix: str, interval: Bounds | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{prefix}low": low, f"{prefix}high": high}
