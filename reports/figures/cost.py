"""Figures of scores against costs: parameters and memory.

Step times depend on what else the machine runs, so they are not comparable and not drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from tensorbench.metrics import direction
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.drawing import MUTED, Drawn, Looks, PointName, Tips, name_at_right, panels, usual
from tensorbench.reports.ranking import CostOf, best_means, pareto
from tensorbench.reports.study import (
    CONVERGED,
    FLOOR,
    OWN_SIZE,
    REFERENCE,
    Cell,
    Study,
    TaskAndBackbone,
    grouped,
    measured,
)
from tensorbench.reports.units import unit_of

#: The largest number of settings with their own figure.
MOST_SETTINGS = 12
#: A panel with more points than this has no whiskers, because they would hide points.
MOST_WHISKERS = 60
#: A note in the panel names at most this many of the points outside the panel.
MOST_OUTSIDE = 3
#: The opacity of points off the Pareto front.
FAINT = 0.3


@dataclass(frozen=True)
class Cost:
    """A cost of methods, such as their parameters, with the texts of its figure."""

    name: str
    title: str
    label: str
    #: Returns a cell's cost. None if it is unknown.
    of: CostOf
    caption: str = "Memory depends on the machine that ran the trial: see Provenance."


PARAMETERS = Cost(
    "score-vs-parameters",
    "Score against parameters",
    "adapter parameters",
    lambda cell: cell.parameters,
    "The dotted line has no adapter parameters.",
)
COSTS = (
    PARAMETERS,
    Cost("score-vs-memory", "Score against memory", "peak memory, MiB", lambda cell: cell["peak_mib"]),
)


@dataclass(frozen=True)
class _Point:
    cell: Cell
    cost: float
    #: The mean score, in percent or in the metric's own unit.
    score: float
    #: Whether the cell is on the Pareto front: no cell that costs no more is significantly better.
    on_front: bool

    @property
    def name(self) -> str:
        cell = self.cell
        return cell.method + ("" if cell.budget == OWN_SIZE else f" ({cell.budget})")

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The 95% interval of `score`, in the same unit. None if unknown."""
        cell = self.cell
        if cell.low is None or cell.high is None:
            return None
        factor = unit_of(cell.metric).factor
        return factor * cell.low, factor * cell.high


def score_against(analysis: Analysis, cost: Cost, looks: Looks) -> list[Drawn]:
    """The figures of scores against a cost, one per setting. Each marks the Pareto front."""
    study = analysis.study
    front = {cell.number for cell in pareto(analysis.evidence, study.all_cells, cost.of)}
    points = [
        _Point(cell, cost_of, unit_of(cell.metric).factor * cell.mean, cell.number in front)
        for cell in study.all_cells
        if cell.mean is not None
        and (cost_of := 0.0 if cell.family == CONVERGED else cost.of(cell)) is not None
    ]
    groups = list(grouped(points, lambda point: point.cell.setting).items())
    more = f" The first {MOST_SETTINGS} of {len(groups)} settings." if len(groups) > MOST_SETTINGS else ""
    return [
        _figure(study, cost, looks, number, setting, of_setting, more)
        for number, (setting, of_setting) in enumerate(groups[:MOST_SETTINGS])
    ]


def _figure(
    study: Study,
    cost: Cost,
    looks: Looks,
    number: int,
    setting: TaskAndBackbone,
    points: Sequence[_Point],
    more: str,
) -> Drawn:
    figure, (ax,) = panels(1, height=3.6, wide=True)
    free = [
        point
        for point in points
        if point.cell.family == CONVERGED or (cost is PARAMETERS and point.cost == 0)
    ]
    dots = [point for point in points if point not in free]
    best = [cell.number for cell in best_means((point.cell for point in dots), cost.of)]
    line = sorted((point for point in dots if point.cell.number in best), key=lambda point: point.cost)
    limits, tips = _limits(points), Tips()
    _draw(ax, dots, line, looks)
    _draw_dots(ax, dots, limits, looks, tips, lambda point: _tip(study, cost, point))
    ax.set_ylim(limits)
    if cost is PARAMETERS:
        _count_axis(ax, _far_apart(dots))
    inside = [point for point in points if limits[0] <= point.score <= limits[1]]
    _draw_free(ax, points, free, inside)
    named = {point.cell.number: point for point in (*line, *_reference(dots)) if point in inside}.values()
    name_at_right(ax, [PointName(p.name, p.cost, p.score, looks.colour(p.cell.family)) for p in named])
    _legend(ax, looks, dots)
    unit = unit_of(points[0].cell.metric)
    ax.set_xlabel(cost.label)
    ax.set_ylabel(measured([points[0].cell]) + (f", {unit.mark}" if unit.mark else ""))
    best_names = f"from cheapest to costliest: {', '.join(p.name for p in line) or 'none'}"
    caption = (
        "Means over seeds, hollow if some are missing. Faint points are off the Pareto front: something that "
        f"costs no more is significantly better. The line joins the best means, {best_names}. "
        f"{'Whiskers are 95% intervals. ' if _whiskered(dots) else ''}{cost.caption}"
        f"{_dotted(free) if cost is not PARAMETERS else ''}{more}"
    )
    return Drawn(
        f"{cost.name}-{number}",
        f"{cost.title}, {setting}",
        caption,
        f"The best means, {best_names}.",
        figure,
        tips,
        settings=(setting,),
    )


def _dotted(free: Sequence[_Point]) -> str:
    return f" The dotted line is {free[0].name}." if free else ""


def _limits(points: Sequence[_Point]) -> tuple[float, float]:
    """The limits of the score axis. The head alone and collapsed methods may lie outside."""
    scores = [p.score for p in points if p.cell.family != FLOOR] or [p.score for p in points]
    metric = points[0].cell.metric
    percent = bool(unit_of(metric).mark)
    low, high = usual(scores, direction(metric), 5.0 if percent else 0.1 * max(map(abs, scores)))
    heads = [p.score for p in points if p.cell.family == CONVERGED]
    low, high = min([low, *heads]), max([high, *heads])
    # Half a point, or for scores with units the same share of the largest.
    pad = max(0.15 * (high - low), 0.5 if percent else 0.005 * high, 1e-9)
    return low - pad, min(high + pad, max(101.0, high + 1)) if percent else high + pad


def _reference(points: Sequence[_Point]) -> list[_Point]:
    """The best cell of LoRA, as a list. Empty without LoRA."""
    lora = [point for point in points if point.cell.family == REFERENCE]
    return sorted(lora, key=lambda point: -(point.cell.gain or 0.0))[:1]


def _far_apart(points: Sequence[_Point]) -> bool:
    """Whether counts of parameters need a logarithmic axis."""
    counts = [point.cost for point in points]
    return bool(counts) and max(counts) > 8 * min(counts)


def _count_axis(ax: Axes, log: bool) -> None:
    if log:
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(FuncFormatter(_count))


def _count(value: float, _: int) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _whiskered(dots: Sized) -> bool:
    """Whether to draw intervals. The intervals of more than `MOST_WHISKERS` points would hide each other."""
    return len(dots) <= MOST_WHISKERS


def _draw(ax: Axes, dots: Sequence[_Point], line: Sequence[_Point], looks: Looks) -> None:
    """Draws the line through the best means, and the intervals of points."""
    ax.plot(
        [point.cost for point in line],
        [point.score for point in line],
        color=MUTED,
        lw=0.9,
        drawstyle="steps-post",
        zorder=1,
    )
    for point in dots if _whiskered(dots) else ():
        if point.bounds:
            colour, alpha = looks.colour(point.cell.family), 0.5 if point.on_front else 0.15
            ax.plot([point.cost] * 2, point.bounds, color=colour, lw=0.7, alpha=alpha, zorder=2)


def _draw_dots(
    ax: Axes,
    dots: Sequence[_Point],
    limits: tuple[float, float],
    looks: Looks,
    tips: Tips,
    tip: Callable[[_Point], str],
) -> None:
    """Draws a dot for each point. A point outside the limits becomes an arrowhead at the edge."""
    low, high = limits
    kinds = grouped(
        dots,
        lambda p: (
            p.cell.family,
            p.cell.complete,
            p.on_front,
            np.sign(p.score - np.clip(p.score, low, high)),
        ),
    )
    for (family, is_complete, on_front, side), group in kinds.items():
        colour = looks.colour(family)
        marks = ax.scatter(
            [point.cost for point in group],
            np.clip([point.score for point in group], low, high),
            s=26,
            marker={-1: "v", 0: looks.shape(family), 1: "^"}[side],
            edgecolor=colour,
            facecolor=colour if is_complete else "none",
            linewidth=1,
            # A point with missing seeds is never faint, since nothing about it is certain.
            alpha=1 if on_front or not is_complete else FAINT,
            clip_on=not side,
            zorder=3,
        )
        tips.put(marks, [tip(point) for point in group])


def _draw_free(ax: Axes, points: Sequence[_Point], free: Sequence[_Point], inside: Sequence[_Point]) -> None:
    """Draws lines at the scores of methods that cost nothing, and names the points outside the panel."""
    for point in free:
        if point in inside:
            ax.axhline(point.score, color=MUTED, lw=0.9, ls=":", zorder=1)
            _note(ax, point.name, (0.99, point.score), "data")
    if outside := [point for point in points if point not in inside]:
        scores = [f"{p.name} {unit_of(p.cell.metric).score(p.cell.mean, 1)}" for p in outside[:MOST_OUTSIDE]]
        more = f" and {len(outside) - MOST_OUTSIDE} more" * (len(outside) > MOST_OUTSIDE)
        _note(ax, f"outside: {', '.join(scores)}{more}", (0.99, 0.03), "axes fraction")


def _note(ax: Axes, text: str, at: tuple[float, float], y: str) -> None:
    ax.annotate(
        text,
        at,
        (0, 2),
        xycoords=("axes fraction", y),
        textcoords="offset points",
        ha="right",
        fontsize=7.5,
        color=MUTED,
    )


def _legend(ax: Axes, looks: Looks, dots: Sequence[_Point]) -> None:
    titles = {
        family: _common_title([point.cell.title for point in group])
        for family, group in grouped(dots, lambda point: point.cell.family).items()
    }
    if len(titles) < 2:
        return
    handles = [
        Line2D([], [], color=looks.colour(f), marker=looks.shape(f), ls="", ms=5, label=titles[f])
        for f in looks.families
        if f in titles
    ]
    ax.figure.legend(handles=handles, loc="outside lower left", ncols=min(6, len(handles)))


def _common_title(titles: Sequence[str]) -> str:
    """The words with which all these names begin. Without common words, the first two names."""
    names = list(dict.fromkeys(titles))
    words = zip(*(name.split() for name in names), strict=False)
    shared = [each[0] for each in takewhile(lambda each: len(set(each)) == 1, words)]
    return " ".join(shared) or ", ".join(names[:2]) + ", …" * (len(names) > 2)


def _tip(study: Study, cost: Cost, point: _Point) -> str:
    cell, unit = point.cell, unit_of(point.cell.metric)
    bounds = "" if point.bounds is None else f" ({unit.score(cell.low)} to {unit.score(cell.high)})"
    seeds = [
        f"seed {seed.seed}: "
        + (unit.score(seed.score) if seed.score is not None else seed.failure or seed.status.lower())
        for seed in study.of_cell(cell.number)
    ]
    place = "on the Pareto front" if point.on_front else "significantly worse than something as cheap"
    return "\n".join(
        [
            point.name,
            f"{unit.score(cell.mean)}{bounds}",
            f"{cost.label}: {point.cost:,.{0 if cost is PARAMETERS else 2}f}",
            *seeds,
            place if cell.complete else "seeds are missing",
        ]
    )
