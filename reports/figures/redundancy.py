"""The figure of a redundancy analysis."""

from __future__ import annotations

from matplotlib.ticker import MaxNLocator

from tensorbench.reports.drawing import SERIES, Drawn, panels, styled
from tensorbench.reports.redundancy import StoredRedundancy


def spectra(number: int, stored: StoredRedundancy) -> list[Drawn]:
    """The singular values of an update by mode. An empty list if none are stored.

    `number` is part of the figure's name, which thus differs between analyses.
    """
    with styled():
        return _spectra(number, stored)


def _spectra(number: int, stored: StoredRedundancy) -> list[Drawn]:
    modes = [mode for mode, values in stored.spectra.items() if values]
    if not modes:
        return []
    figure, axes = panels(len(modes), columns=3, height=2.4)
    for ax, mode in zip(axes, modes, strict=True):
        values = stored.spectra[mode]
        top = max(values) or 1
        ax.plot(range(1, len(values) + 1), [v / top for v in values], color=SERIES[0], lw=1, marker="o", ms=3)
        ax.axvline(stored.effective_ranks[mode], color=SERIES[1], lw=1, ls="--")
        ax.set_title(f"{mode} · effective rank {stored.effective_ranks[mode]:.1f} of {len(values)}")
        ax.set_ylim(0, 1.05)
        ax.set_xlabel("component")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    caption = "Singular values of each mode, the largest being 1; the dashed line is the effective rank."
    text = "; ".join(f"{mode}: effective rank {stored.effective_ranks[mode]:.1f}" for mode in modes)
    return [Drawn(f"redundancy-{number}-spectra", f"{stored.name}: spectra", caption, text, figure)]
