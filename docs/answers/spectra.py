"""Draws the spectra of trained updates in the packs, which show redundant modes (question f)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from bench.probes.redundancy import MODES
from reports import ablation
from reports.drawing import MUTED, SERIES, panels, styled
from reports.inference.intervals import Array
from reports.study import grouped
from reports.words import listed

from .packed import Packed
from .picture import Picture


@dataclass(frozen=True)
class Update:
    """The stacked attention updates of one row of a suite: one for each analysed adapter."""

    suite: str
    task: str
    method: str
    adapters: Sequence[ablation.StoredAblation]

    def values(self, mode: str) -> Array:
        """Singular values of the mode's unfolding (adapters, values), in descending order."""
        return np.array([adapter.spectra[mode] for adapter in self.adapters])

    def effective(self, mode: str) -> float:
        """The mean of the adapters' effective ranks."""
        return float(np.mean([adapter.effective_ranks[mode] for adapter in self.adapters]))

    def summary(self, mode: str) -> str:
        return f"{self.effective(mode):.1f} of {self.values(mode).shape[1]}"

    @property
    def label(self) -> str:
        return f"{self.method}, {self.task} ({self.suite})"


def updates_of(packs: Sequence[Packed]) -> list[Update]:
    """One `Update` for each row of these packs with a redundancy analysis."""
    studied = [
        (pack.suite, adapter)
        for pack in packs
        if pack.study is not None
        for adapter in ablation.read(pack.study)
        if adapter.kind == "redundancy"
    ]
    rows = grouped(studied, lambda pair: (pair[0], pair[1].task, pair[1].method, pair[1].budget))
    return [
        Update(suite, task, method, [adapter for _, adapter in pairs])
        for (suite, task, method, _), pairs in rows.items()
    ]


@dataclass(frozen=True)
class Spectra(Picture):
    """A panel for each mode, with a line for each update."""

    updates: Sequence[Update]
    name: str = "f-spectra"

    @property
    def alternative(self) -> str:
        each = (
            f"{update.label}: {listed(f'{_words(mode)} {update.summary(mode)}' for mode in MODES)}"
            for update in self.updates
        )
        return f"Effective ranks of trained updates. {'; '.join(each)}."

    @property
    def title(self) -> str:
        return "Singular values of trained updates, by mode"

    def figure(self) -> Figure:
        figure, axes = panels(len(MODES), columns=3, height=2.5)
        with styled():
            for ax, mode in zip(axes, MODES, strict=True):
                for number, update in enumerate(self.updates):
                    values = update.values(mode)
                    shares = (values / values[:, :1]).mean(axis=0)
                    places = np.arange(1, len(shares) + 1) / len(shares)
                    ax.plot(places, shares, color=SERIES[number % len(SERIES)], lw=1.2, label=update.label)
                ax.set_title(_words(mode))
                ax.set_xlim(0, 1)
                ax.set_ylim(0, 1.05)
            axes[0].set_ylabel("singular value / largest")
            figure.supxlabel("place among the singular values / their number", fontsize=8.5, color=MUTED)
            figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
        return figure


def _words(mode: str) -> str:
    return mode.replace("_", " ")
