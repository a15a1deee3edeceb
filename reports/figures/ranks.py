"""The figures of ranks: allocations of one budget, and scores by the number of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter

import numpy as np

from tensorbench.reports.analysis import Analysis
from tensorbench.reports.answers import is_apart, score_name, settings_counted
from tensorbench.reports.blocks import Entrant
from tensorbench.reports.drawing import (
    MUTED,
    SERIES,
    Drawn,
    Looks,
    PointName,
    Tips,
    legend_below,
    log_axis,
    name_at_right,
    panels,
)
from tensorbench.reports.figures.compared import DASHES, differences
from tensorbench.reports.figures.cost import count
from tensorbench.reports.ranks import OverBudgets
from tensorbench.reports.results import FLOOR

#: The smallest number of budgets for which scores are drawn by parameters. Two are in the table alone.
LEAST_BUDGETS = 3


def ranks(analysis: Analysis, looks: Looks) -> Iterator[Drawn]:
    """Yields the figures of the report's section on ranks."""
    for number, section in enumerate(analysis.allocations):
        if section.block.compared and is_apart(analysis, section):
            yield differences(section.block, f"ranks-{number}", f"Ranks of {section.method}", looks)
    for number, group in enumerate(analysis.over_budgets):
        # Bands of many allocations would hide each other.
        methods = {
            method: own
            for method, entrants in group.methods.items()
            if len(own := [*entrants.values()]) >= LEAST_BUDGETS and not own[0].cells[0].allocation
        }
        if methods:
            yield _by_parameters(group, methods, number, looks)


def _by_parameters(
    group: OverBudgets, methods: Mapping[str, Sequence[Entrant]], number: int, looks: Looks
) -> Drawn:
    """Draws scores against parameters: a line with a band per method, and a line per other method.

    The other methods have no adapter, so their lines are horizontal.
    """
    figure, (ax,) = panels(1, height=3.4, wide=True)
    block, tips, names = group.blocks[0], Tips(), []
    unit, k = block.unit, block.k
    for place, (method, entrants) in enumerate(methods.items()):
        colour = SERIES[place % len(SERIES)]
        points = sorted(((e.parameters or 0, e.means[k]) for e in entrants), key=itemgetter(0))
        sizes = [size for size, _ in points]
        values = [unit.factor * mean.value for _, mean in points]
        ends = [mean.interval or (mean.value, mean.value) for _, mean in points]
        low, high = (unit.factor * np.array(bounds) for bounds in zip(*ends, strict=True))
        ax.plot(sizes, values, color=colour, lw=1.3)
        ax.fill_between(sizes, low, high, color=colour, alpha=0.15, lw=0)
        marks = ax.scatter(sizes, values, s=26, color=colour, marker=looks.shape(entrants[0].family), lw=0)
        shown = [
            f"{method}\n{unit.estimate(mean.value, mean.interval)}\n{size:,} parameters"
            for size, mean in points
        ]
        tips.put(marks, shown)
        names.append(PointName(method, sizes[-1], values[-1], colour))
    bottom, top = ax.get_ylim()
    outside = []
    for place, level in enumerate(block.levels):
        value = unit.factor * sum(level.scores.values()) / len(block.settings)
        if len(level.scores) < len(block.settings):
            continue
        # As in the figures of costs, the head alone may lie outside.
        if level.family != FLOOR or 2 * bottom - top <= value <= 2 * top - bottom:
            dashes = DASHES[place % len(DASHES)]
            ax.axhline(value, color=MUTED, lw=1.1, ls=dashes, zorder=1, label=level.method)
        else:
            outside.append(f"{level.method} ({unit.score(value / unit.factor)})")
    log_axis(ax, count)
    ax.set_xlabel("adapter parameters")
    ax.set_ylabel(unit.named(f"{block.evaluated} {block.metric}"))
    name_at_right(ax, names)
    if handles := ax.get_legend_handles_labels()[0]:
        legend_below(figure, handles, 3)
    averaged = f", as a mean over {settings_counted(block)}" * (len(block.settings) > 1)
    backbones = list(dict.fromkeys(setting.backbone for setting in block.settings))
    caption = (
        f"The {score_name(block)}{averaged}, with bands of 95% intervals, each by itself. Bands may "
        "overlap where a paired difference excludes zero. Lines across are methods without adapter."
        + " Other methods are in the table." * (len(methods) < len(group.methods))
        + f" Outside the frame: {', '.join(outside)}." * bool(outside)
    )
    if len(backbones) > 1:
        caption += f" Parameters are those on {backbones[0]}."
    alternative = "; ".join(
        f"{method}: " + ", ".join(f"{unit.score(e.means[k].value)} with {e.parameters:,}" for e in entrants)
        for method, entrants in methods.items()
    )
    title = "Score by the number of parameters"
    return Drawn(f"ranks-budgets-{number}", title, caption, alternative, figure, tips)
