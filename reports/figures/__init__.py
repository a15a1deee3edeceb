"""The figures of a report. Lists of figures are empty if there is nothing to draw."""

from __future__ import annotations

from matplotlib.ticker import MaxNLocator

from tensorbench.reports.analysis import Analysis
from tensorbench.reports.drawing import SERIES, Drawn, Looks, panels, styled
from tensorbench.reports.figures.compared import compared
from tensorbench.reports.figures.cost import COSTS, score_against
from tensorbench.reports.figures.ranks import ranks
from tensorbench.reports.figures.training import curves, training
from tensorbench.reports.redundancy import StoredRedundancy


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


def spectra(number: int, stored: StoredRedundancy) -> list[Drawn]:
    """Draws the singular values of an update by mode. Returns an empty list if none are stored.

    `number` makes the figure's name differ between analyses.
    """
    modes = [mode for mode, values in stored.spectra.items() if values]
    if not modes:
        return []
    with styled():
        figure, axes = panels(len(modes), columns=3, height=2.4)
        for ax, mode in zip(axes, modes, strict=True):
            values, effective = stored.spectra[mode], stored.effective_ranks[mode]
            shares = [value / (max(values) or 1) for value in values]
            ax.plot(range(1, len(values) + 1), shares, color=SERIES[0], lw=1, marker="o", ms=3)
            ax.axvline(effective, color=SERIES[1], lw=1, ls="--")
            ax.set_title(f"{mode} · effective rank {effective:.1f} of {len(values)}")
            ax.set_ylim(0, 1.05)
            ax.set_xlabel("component")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    caption = "Singular values of each mode, the largest being 1; the dashed line is the effective rank."
    text = "; ".join(f"{mode}: effective rank {stored.effective_ranks[mode]:.1f}" for mode in modes)
    return [Drawn(f"redundancy-{number}-spectra", f"{stored.name}: spectra", caption, text, figure)]
