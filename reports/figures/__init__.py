"""The figures of a report.

Each function returns an empty list if there is nothing to draw.
"""

from __future__ import annotations

from tensorbench.reports import curves
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.drawing import Drawn, Looks, styled
from tensorbench.reports.figures.compared import compared
from tensorbench.reports.figures.cost import COSTS, score_against
from tensorbench.reports.figures.redundancy import spectra as spectra
from tensorbench.reports.figures.training import training


def draw(analysis: Analysis) -> tuple[list[Drawn], list[str]]:
    """All figures for which the results have data, and notes on what they leave out."""
    looks = Looks(cell.family for cell in analysis.results.all_cells)
    shown, notes = curves.read(analysis.results)
    with styled():
        drawn = compared(analysis, looks)
        for cost in COSTS:
            drawn += score_against(analysis, cost, looks)
        drawn += training(shown, looks)
    return drawn, notes
