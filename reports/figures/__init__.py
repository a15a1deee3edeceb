"""The figures of a report. Lists of figures are empty if there is nothing to draw."""

from __future__ import annotations

from tensorbench.reports.analysis import Analysis
from tensorbench.reports.drawing import Drawn, Looks, styled
from tensorbench.reports.figures.compared import compared
from tensorbench.reports.figures.cost import COSTS, score_against
from tensorbench.reports.figures.ranks import ranks
from tensorbench.reports.figures.training import curves, training


def draw(analysis: Analysis) -> tuple[list[Drawn], list[str]]:
    """All figures for which the results have data, and notes on what they leave out."""
    looks = Looks(cell.family for cell in analysis.results.all_cells)
    shown, notes = curves(analysis.results)
    with styled():
        drawn = list(compared(analysis, looks))
        for cost in COSTS:
            drawn += score_against(analysis, cost, looks)
        drawn += [*ranks(analysis, looks), *training(shown, looks)]
    return drawn, notes
