"""The figures of a search, an allocation or a redundancy analysis."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import MaxNLocator

from tensorbench.metrics import direction
from tensorbench.reports.ablation import StoredAblation
from tensorbench.reports.drawing import INK, MUTED, SERIES, Drawn, panels, styled
from tensorbench.reports.units import unit_of


def ablation(number: int, stored: StoredAblation, level: float | None = None) -> list[Drawn]:
    """The figures of an ablation: score by rank, importance of each mode, and singular values by mode.

    `level` is the validation score of the converged head, if known. `number` is part of the figures' names,
    which thus differ between ablations.
    """
    with styled():
        drawn = [_by_rank(number, stored, level), _importance(number, stored), _spectra(number, stored)]
    return [figure for figure in drawn if figure is not None]


def _by_rank(number: int, stored: StoredAblation, level: float | None) -> Drawn | None:
    unit = unit_of(stored.metric)
    # Points with a lost seed enter neither the mean nor the best.
    points = [
        (entry.ranks, unit.factor * entry.value)
        for entry in stored.tried
        if entry.value is not None and entry.state == "complete"
    ]
    if stored.kind == "allocation":
        # An allocation may have the same ranks under several labels; in a search, points may differ in rate.
        points = [(list(ranks), value) for ranks, value in {tuple(r): value for r, value in points}.items()]
    if not points:
        return None
    figure, axes = panels(len(stored.modes), columns=3, height=2.4)
    best, top = max(points, key=lambda entry: direction(stored.metric) * entry[1])
    if stored.best is not None and stored.best.value is not None:
        best, top = stored.best.ranks, unit.factor * stored.best.value
    tied = stored.choice is not None and stored.choice.ties.others
    values = np.array([value for _, value in points])
    for mode, ax in enumerate(axes):
        ranks = np.array([ranks[mode] for ranks, _ in points])
        ax.scatter(ranks, values, s=20, facecolor="none", edgecolor=SERIES[0], linewidth=1)
        used_ranks = np.unique(ranks)
        ax.plot(
            used_ranks, [values[ranks == rank].mean() for rank in used_ranks], color=MUTED, lw=0.9, zorder=1
        )
        ax.scatter(best[mode], top, s=26, color=SERIES[1], marker="D", zorder=3)
        if level is not None:
            ax.axhline(unit.factor * level, color=MUTED, lw=0.9, ls=":", zorder=1)
        ax.set_title(stored.modes[mode])
        ax.set_xlabel("rank")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        if mode % 3 == 0:
            ax.set_ylabel("validation score" + (f", {unit.mark}" if unit.mark else ""))
    caption = (
        "Each circle is one allocation whose every seed finished; the other modes' ranks differ too. The "
        f"line is the mean at each rank, the diamond the {'choice among ties' if tied else 'best'}."
    )
    if level is not None:
        caption += f" The dotted line is the converged head: {unit.score(level)}."
    text = ", ".join(f"{mode} {rank}" for mode, rank in zip(stored.modes, best, strict=True))
    title = f"{stored.name}: score by rank"
    return Drawn(
        f"ablation-{number}-ranks",
        title,
        caption,
        f"{'Chosen among ties' if tied else 'Best'}: {text}.",
        figure,
    )


def _importance(number: int, stored: StoredAblation) -> Drawn | None:
    evaluators = {name: values for name, values in stored.importance.items() if values}
    if not evaluators:
        return None
    figure, axes = panels(len(evaluators), columns=2, height=0.8 + 0.26 * len(stored.modes))
    for ax, (evaluator, values) in zip(axes, evaluators.items(), strict=True):
        modes = list(values)[::-1]
        ax.barh(modes, [values[mode] for mode in modes], color=SERIES[0], height=0.55)
        ax.tick_params(axis="y", labelcolor=INK)
        ax.set_title(evaluator)
        ax.grid(False, axis="y")
    caption = "Importance of each mode's rank for the score in these trials, by Optuna's evaluators."
    text = "; ".join(
        f"{evaluator}: " + ", ".join(f"{mode} {share:.2f}" for mode, share in values.items())
        for evaluator, values in evaluators.items()
    )
    title = f"{stored.name}: importance of modes"
    return Drawn(f"ablation-{number}-importance", title, caption, text, figure)


def _spectra(number: int, stored: StoredAblation) -> Drawn | None:
    modes = [mode for mode, values in stored.spectra.items() if values]
    if not modes:
        return None
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
    return Drawn(f"ablation-{number}-spectra", f"{stored.name}: spectra", caption, text, figure)
