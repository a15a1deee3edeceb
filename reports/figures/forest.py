"""Forest plots: a row for each method, with a value and its interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import blended_transform_factory

from tensorbench.reports.drawing import INK, MUTED, RULE, Tips
from tensorbench.reports.inference.intervals import Bounds

#: An outlier is farther from zero than this many times the threshold and than this many times the median
#: distance from zero. Outliers are marked only at the edge.
FAR = 6
#: The dash patterns of lines across a forest, in order.
DASHES = (":", "--", "-.")


@dataclass(frozen=True)
class ForestRow:
    """A row of a forest plot: a value with its interval in units of the axis, its look and its tooltip."""

    name: str
    value: float
    interval: Bounds | None
    colour: str
    shape: str
    tip: str


def height(rows: int) -> float:
    """The height in inches of a forest with this many rows."""
    return 0.9 + 0.23 * rows


def forest(ax: Axes, rows: Sequence[ForestRow], limits: Bounds, tips: Tips) -> None:
    """Draws the rows from top to bottom.

    If an interval continues outside the limits, an arrowhead marks that end. A value outside the limits is
    written as a number.
    """
    low, high = limits
    beside = blended_transform_factory(ax.transAxes, ax.transData)
    for place, row in enumerate(rows):
        y = -place
        ends = row.interval or (row.value, row.value)
        start, end = (min(max(bound, low), high) for bound in ends)
        if end > start:
            tips.put(ax.hlines(y, start, end, color=row.colour, lw=1.5), [row.tip])
        for is_beyond, edge, arrow in ((ends[0] < low, low, "<"), (ends[1] > high, high, ">")):
            if is_beyond:
                ax.scatter(edge, y, s=20, marker=arrow, color=row.colour, lw=0, clip_on=False, zorder=4)
        if low <= row.value <= high:
            dot = ax.scatter(row.value, y, s=26, color=row.colour, marker=row.shape, lw=0, zorder=3)
            tips.put(dot, [row.tip])
        else:
            at_left = row.value < low
            ax.text(
                0.02 if at_left else 0.98,
                y,
                f"{row.value:+.3g}".replace("-", "−"),
                transform=beside,
                ha="left" if at_left else "right",
                va="bottom",
                fontsize=7,
                color=row.colour,
            )
    ax.set_xlim(low, high)
    ax.set_yticks([-place for place in range(len(rows))], [row.name for row in rows])
    ax.set_ylim(-len(rows) + 0.4, 0.6)
    ax.tick_params(axis="y", labelcolor=INK)
    ax.grid(visible=False, axis="y")


def band(ax: Axes, threshold: float) -> None:
    """Draws a line at zero, and the band of differences that are too small to matter."""
    ax.axvspan(-threshold, threshold, color=RULE, alpha=0.6, lw=0)
    ax.axvline(0, color=MUTED, lw=0.8)


def reach(rows: Iterable[ForestRow], threshold: float, levels: Iterable[float] = ()) -> Bounds:
    """Limits of the axis that include zero, the band, all values except outliers, and most intervals.

    `levels` are the positions of further lines. A level is included unless that would widen the axis by more
    than half.
    """
    rows = list(rows)
    sizes = np.abs([row.value for row in rows])
    farthest = FAR * max(float(np.median(sizes)), threshold)
    within = [row for row in rows if abs(row.value) <= farthest]
    # Most intervals fit, but a very wide one must not squeeze everything else.
    largest = max((abs(row.value) for row in within), default=0.0)
    bounds = [abs(bound) for row in within for bound in row.interval or ()]
    usual = min(float(np.percentile(bounds, 90)), 4 * largest) if bounds else 0.0
    widest = max(2.2 * largest, 2.5 * threshold, usual)
    ends = [-1.5 * threshold, 1.5 * threshold]
    for row in within:
        ends += [min(max(bound, -widest), widest) for bound in (row.value, *(row.interval or ()))]
    low, high = min(ends), max(ends)
    beyond = (high - low) / 2
    ends += [level for level in levels if low - beyond <= level <= high + beyond]
    low, high = min(ends), max(ends)
    pad = 0.04 * (high - low)
    return low - pad, high + pad
