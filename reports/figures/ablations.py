"""The figures of a search, an allocation or a redundancy analysis."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import MaxNLocator

from bench.metrics import direction
from reports.ablation import StoredAblation
from reports.drawing import INK, MUTED, SERIES, Drawn, panels, styled
from reports.units import unit_of


def ablation(number: int, found: StoredAblation, level: float | None = None) -> list[Drawn]:
    """Score against each mode's rank, importance of each mode, and singular values by mode.

    `level`: the validation score of the converged head, where there is one.
    """
    with styled():
        drawn = [_by_rank(number, found, level), _importance(number, found), _spectra(number, found)]
    return [figure for figure in drawn if figure is not None]


def _by_rank(number: int, found: StoredAblation, level: float | None) -> Drawn | None:
    unit = unit_of(found.metric)
    # Neither the mean nor the best is of what lost a seed.
    tried = [
        (entry.ranks, unit.factor * entry.value)
        for entry in found.tried
        if entry.value is not None and entry.state == "complete"
    ]
    if found.kind == "allocation":
        # The same ranks stand there under several labels. In a search they may differ in learning rate.
        tried = [(list(ranks), value) for ranks, value in {tuple(r): value for r, value in tried}.items()]
    if not tried:
        return None
    figure, axes = panels(len(found.modes), columns=3, height=2.4)
    best, top = max(tried, key=lambda entry: direction(found.metric) * entry[1])
    values = np.array([value for _, value in tried])
    for mode, ax in enumerate(axes):
        ranks = np.array([ranks[mode] for ranks, _ in tried])
        ax.scatter(ranks, values, s=20, facecolor="none", edgecolor=SERIES[0], linewidth=1)
        known = np.unique(ranks)
        ax.plot(known, [values[ranks == rank].mean() for rank in known], color=MUTED, lw=0.9, zorder=1)
        ax.scatter(best[mode], top, s=26, color=SERIES[1], marker="D", zorder=3)
        if level is not None:
            ax.axhline(unit.factor * level, color=MUTED, lw=0.9, ls=":", zorder=1)
        ax.set_title(found.modes[mode])
        ax.set_xlabel("rank")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        if mode % 3 == 0:
            ax.set_ylabel("validation score" + (f", {unit.mark}" if unit.mark else ""))
    caption = (
        "Each circle is one allocation whose every seed finished; the other modes' ranks differ too. The "
        "line is the mean at each rank, the diamond the best."
    )
    if level is not None:
        caption += f" The dotted line is the converged head: {unit.score(level)}."
    text = ", ".join(f"{mode} {rank}" for mode, rank in zip(found.modes, best, strict=True))
    title = f"{found.name}: score by rank"
    return Drawn(f"ablation-{number}-ranks", title, caption, f"Best: {text}.", figure)


def _importance(number: int, found: StoredAblation) -> Drawn | None:
    evaluators = {name: values for name, values in found.importance.items() if values}
    if not evaluators:
        return None
    figure, axes = panels(len(evaluators), columns=2, height=0.8 + 0.26 * len(found.modes))
    for ax, (evaluator, values) in zip(axes, evaluators.items(), strict=True):
        modes = list(values)[::-1]
        ax.barh(modes, [values[mode] for mode in modes], color=SERIES[0], height=0.55)
        ax.tick_params(axis="y", labelcolor=INK)
        ax.set_title(evaluator)
        ax.grid(False, axis="y")
    caption = (
        "Importance of each mode's rank for the score, by Optuna's evaluators; it describes these trials."
    )
    text = "; ".join(
        f"{evaluator}: " + ", ".join(f"{mode} {share:.2f}" for mode, share in values.items())
        for evaluator, values in evaluators.items()
    )
    title = f"{found.name}: importance of modes"
    return Drawn(f"ablation-{number}-importance", title, caption, text, figure)


def _spectra(number: int, found: StoredAblation) -> Drawn | None:
    modes = [mode for mode, values in found.spectra.items() if values]
    if not modes:
        return None
    figure, axes = panels(len(modes), columns=3, height=2.4)
    for ax, mode in zip(axes, modes, strict=True):
        values = found.spectra[mode]
        top = max(values) or 1
        ax.plot(range(1, len(values) + 1), [v / top for v in values], color=SERIES[0], lw=1, marker="o", ms=3)
        ax.axvline(found.effective_ranks[mode], color=SERIES[1], lw=1, ls="--")
        ax.set_title(f"{mode} · effective rank {found.effective_ranks[mode]:.1f} of {len(values)}")
        ax.set_ylim(0, 1.05)
        ax.set_xlabel("component")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    caption = "Singular values of each mode, the largest being 1; the dashed line is the effective rank."
    text = "; ".join(f"{mode}: effective rank {found.effective_ranks[mode]:.1f}" for mode in modes)
    return Drawn(f"ablation-{number}-spectra", f"{found.name}: spectra", caption, text, figure)
