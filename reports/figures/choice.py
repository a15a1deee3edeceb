"""The figure of choices of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tensorbench.methods import UserError
from tensorbench.reports.choice import RankChoice
from tensorbench.reports.drawing import INK, MUTED, SERIES, styled
from tensorbench.reports.units import unit_of


def draw(choices: Sequence[RankChoice], file: Path) -> None:
    """Draws the validation score by the rank of each mode, and the importance of modes.

    There is a row of panels for each choice. Raises UserError if the file cannot be written.
    """
    with styled():
        columns = 1 + max(len(choice.modes) for choice in choices)
        figure = Figure(figsize=(2.6 * columns, 2.6 * len(choices)), layout="constrained")
        parts = figure.subfigures(len(choices), squeeze=False)[:, 0]
        for choice, part in zip(choices, parts, strict=True):
            part.suptitle(choice.name)
            panels = part.subplots(1, columns)
            for mode in range(len(choice.modes)):
                _by_rank(panels[mode], choice, mode)
            _importance(panels[-1], choice)
            for panel in panels[len(choice.modes) : -1]:
                panel.axis("off")
        try:
            figure.savefig(file, dpi=150)
        except (ValueError, OSError) as error:
            raise UserError(f"--plot {file}: {error}") from error


def _by_rank(panel: Axes, choice: RankChoice, mode: int) -> None:
    """Draws the scores by the rank of one mode.

    A circle is a complete point, the line is the mean at each rank, and diamonds are the chosen points.
    """
    unit = unit_of(choice.metric)
    points = [choice.tried[place] for place in choice.ranked]
    ranks = np.array([point.ranks[mode] for point in points])
    values = np.array([unit.factor * fmean(point.scores) for point in points])
    panel.scatter(ranks, values, s=20, facecolor="none", edgecolor=SERIES[0], linewidth=1)
    used = np.unique(ranks)
    panel.plot(used, [values[ranks == rank].mean() for rank in used], color=MUTED, lw=0.9, zorder=1)
    for point in (choice.tried[place] for place in choice.chosen):
        value = unit.factor * fmean(point.scores)
        panel.scatter(point.ranks[mode], value, s=26, color=SERIES[1], marker="D", zorder=3)
    panel.set_title(choice.modes[mode])
    panel.set_xlabel("rank")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if mode == 0:
        panel.set_ylabel(unit.named("validation score"))


def _importance(panel: Axes, choice: RankChoice) -> None:
    """Draws a bar for each mode and evaluator. There are no bars if `RankChoice.importance` is empty."""
    panel.set_title("importance of modes")
    modes = list(choice.modes)[::-1]
    height = 0.8 / max(1, len(choice.importance))
    for number, (evaluator, shares) in enumerate(choice.importance.items()):
        places = [place - number * height for place in range(len(modes))]
        values = [shares.get(mode, 0.0) for mode in modes]
        panel.barh(places, values, height=height, color=SERIES[number], label=evaluator)
    if choice.importance:
        panel.legend(fontsize="x-small")
    panel.set_yticks(range(len(modes)), modes)
    panel.tick_params(axis="y", labelcolor=INK)
    panel.grid(False, axis="y")
