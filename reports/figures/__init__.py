"""The figures of a report.

Each function returns None or an empty list if there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Sequence

from tensorbench.reports.analysis import Analysis
from tensorbench.reports.curves import Curve
from tensorbench.reports.drawing import Drawn, Looks, styled
from tensorbench.reports.figures.blocks import differences, ranks
from tensorbench.reports.figures.cost import COSTS, score_against
from tensorbench.reports.figures.redundancy import spectra as spectra
from tensorbench.reports.figures.training import training


def draw(analysis: Analysis, curves: Sequence[Curve] = ()) -> list[Drawn]:
    """All figures of a report for which the study has data."""
    study = analysis.study
    looks = Looks(cell.family for cell in study.all_cells)
    with styled():
        drawn: list[Drawn | None] = []
        for cost in COSTS:
            drawn += score_against(analysis, cost, looks)
        for number, block in enumerate(analysis.blocks):
            drawn += [
                differences(study, block, number, looks),
                ranks(study, block, number, looks),
            ]
        drawn += training(curves, looks)
    return [figure for figure in drawn if figure is not None]
