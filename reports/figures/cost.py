"""Figures of scores against costs: parameters and memory.

Step times depend on what else the machine runs, so they are not comparable and not drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from tensorbench.records.metrics import direction
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.blocks import Estimate
from tensorbench.reports.drawing import (
    MUTED,
    Drawn,
    Looks,
    PointName,
    Tips,
    legend_below,
    name_at_right,
    panels,
    usual,
)
from tensorbench.reports.results import (
    CONVERGED,
    FLOOR,
    NO_ADAPTERS,
    OWN_SIZE,
    REFERENCE,
    Cell,
    TaskAndBackbone,
    grouped,
    score_label,
)
from tensorbench.reports.units import Unit, unit_of

#: The largest number of settings with their own figure.
MOST_SETTINGS = 12
#: A panel with more points than this has no whiskers, because they would hide points.
MOST_WHISKERS = 60
#: A note in the panel names at most this many of the points outside the panel.
MOST_OUTSIDE = 3


@dataclass(frozen=True)
class Cost:
    """A cost of methods, such as their number of parameters, with the texts of its figure."""

    name: str
    title: str
    label: str
    #: Returns a cell's cost. None if it is unknown.
    of: Callable[[Cell], float | None]
    #: The format specification of the cost in tooltips.
    form: str
    caption: str = ""


COSTS = (
    Cost(
        "score-vs-parameters",
        "Score against parameters",
        "adapter parameters",
        lambda cell: None if cell.family in NO_ADAPTERS else cell.parameters,
        ",.0f",
    ),
    Cost(
        "score-vs-memory",
        "Score against memory",
        "peak memory, MiB",
        lambda cell: None if cell.family == CONVERGED else cell["peak_mib"],
        ",.2f",
        " Memory depends on the machine that ran the trial: see how the trials were made.",
    ),
)


@dataclass(frozen=True)
class _Point:
    cell: Cell
    estimate: Estimate
    #: The cost. None for a method without such a cost, which is drawn as a line.
    cost: float | None
    unit: Unit
    #: The cell's budget. Empty for methods of fixed size, and if the results have only one budget.
    budget: str = ""

    @property
    def score(self) -> float:
        """The score, in percent or in the metric's own unit."""
        return self.unit.factor * self.estimate.value

    @property
    def gain(self) -> float:
        return direction(self.cell.metric) * self.estimate.value

    @property
    def name(self) -> str:
        return self.cell.method + (f" ({self.budget})" if self.budget else "")

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The 95% interval of `score`, in the same unit. None if unknown."""
        interval = self.estimate.interval
        return interval and (self.unit.factor * interval[0], self.unit.factor * interval[1])


def score_against(analysis: Analysis, cost: Cost, looks: Looks) -> list[Drawn]:
    """The figures of scores against a cost, one per setting on which some method's cost is known.

    Only the first `MOST_SETTINGS` of these settings have a figure.
    """
    sized = {cell.budget for cell in analysis.results.all_cells} - {OWN_SIZE}
    points = [
        _Point(
            cell,
            found,
            cost.of(cell),
            unit_of(cell.metric, cell.unit),
            cell.budget if cell.budget in sized and len(sized) > 1 else "",
        )
        for cell in analysis.results.all_cells
        if cell.metric and (found := analysis.score(cell)) is not None
    ]
    groups = {
        setting: own
        for setting, own in grouped(points, lambda point: point.cell.setting).items()
        if any(point.cost is not None for point in own)
    }
    more = f" The first {MOST_SETTINGS} of {len(groups)} settings." if len(groups) > MOST_SETTINGS else ""
    return [
        _figure(cost, looks, number, setting, groups[setting], more)
        for number, setting in enumerate(list(groups)[:MOST_SETTINGS])
    ]


def _figure(
    cost: Cost, looks: Looks, number: int, setting: TaskAndBackbone, points: Sequence[_Point], more: str
) -> Drawn:
    figure, (ax,) = panels(1, height=3.6, wide=True)
    unit, dots = points[0].unit, [point for point in points if point.cost is not None]
    line, tips, (low, high) = best_means(dots), Tips(), _limits(points)
    steps = [point.cost or 0.0 for point in line], [point.score for point in line]
    ax.plot(*steps, color=MUTED, lw=0.9, drawstyle="steps-post", zorder=1)
    whiskers = len(dots) <= MOST_WHISKERS
    for point in dots if whiskers else ():
        if point.bounds:
            colour = looks.colour(point.cell.family)
            ax.plot([point.cost or 0.0] * 2, point.bounds, color=colour, lw=0.7, alpha=0.5, zorder=2)
    # A point outside the limits becomes an arrowhead at the edge.
    kinds = grouped(
        dots,
        lambda p: (p.cell.family, p.cell.complete, np.sign(p.score - np.clip(p.score, low, high))),
    )
    for (family, is_complete, side), group in kinds.items():
        colour = looks.colour(family)
        marks = ax.scatter(
            [point.cost or 0.0 for point in group],
            np.clip([point.score for point in group], low, high),
            s=26,
            marker={-1: "v", 0: looks.shape(family), 1: "^"}[side],
            edgecolor=colour,
            facecolor=colour if is_complete else "none",
            linewidth=1,
            clip_on=not side,
            zorder=3,
        )
        tips.put(marks, ["\n".join(_tip(cost, point)) for point in group])
    ax.set_ylim(low, high)
    costs = [point.cost or 0.0 for point in dots]
    if max(costs) > 8 * min(costs) > 0:
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(FuncFormatter(count))

    def note(text: str, at: tuple[float, float], y: str) -> None:
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

    inside = [point for point in points if low <= point.score <= high]
    for point in inside:
        if point.cost is None:
            ax.axhline(point.score, color=MUTED, lw=0.9, ls=":", zorder=1)
            note(point.name, (0.99, point.score), "data")
    if outside := [point for point in points if point not in inside]:
        scores = [f"{p.name} {p.unit.score(p.estimate.value, 1)}" for p in outside[:MOST_OUTSIDE]]
        rest = f" and {len(outside) - MOST_OUTSIDE} more" * (len(outside) > MOST_OUTSIDE)
        note(f"outside: {', '.join(scores)}{rest}", (0.99, 0.03), "axes fraction")
    lora = sorted((p for p in dots if p.cell.family == REFERENCE), key=lambda p: -p.gain)
    named = {p.cell.number: p for p in (*line, *lora[:1]) if p in inside}.values()
    name_at_right(ax, [PointName(p.name, p.cost or 0.0, p.score, looks.colour(p.cell.family)) for p in named])
    titles = {
        family: _common_title([point.cell.title for point in group])
        for family, group in grouped(dots, lambda point: point.cell.family).items()
    }
    if len(titles) > 1:
        handles = [
            Line2D([], [], color=looks.colour(f), marker=looks.shape(f), ls="", ms=5, label=titles[f])
            for f in looks.families
            if f in titles
        ]
        legend_below(figure, handles, 6, "outside lower left")
    ax.set_xlabel(cost.label)
    ax.set_ylabel(unit.named(score_label([points[0].cell])))
    names = f"from cheapest to costliest: {', '.join(p.name for p in line) or 'none'}"
    caption = (
        f"Hollow if trials are missing. The solid line joins the best scores, {names}. "
        f"{'Whiskers are 95% intervals. ' * whiskers}Dotted lines have no such cost.{cost.caption}{more}"
    )
    alternative = f"The best scores, {names}."
    return Drawn(f"{cost.name}-{number}", f"{cost.title}, {setting}", caption, alternative, figure, tips)


def best_means(points: Iterable[_Point]) -> list[_Point]:
    """The Pareto-optimal complete points: no other point costs at most as much and scores at least as high.

    Returns them from cheapest to costliest. Noise is disregarded. Points equal in cost and score are all
    kept.
    """
    best: list[_Point] = []
    complete = [point for point in points if point.cell.complete]
    for point in sorted(complete, key=lambda point: (point.cost or 0.0, -point.gain)):
        # The same trials may belong to cells of two budgets. Both cells are then among the best.
        last = best[-1] if best else None
        if not last or point.gain > last.gain or (point.cost, point.gain) == (last.cost, last.gain):
            best.append(point)
    return best


def _limits(points: Sequence[_Point]) -> tuple[float, float]:
    """The limits of the score axis. The head alone and collapsed methods may lie outside."""
    scores = [p.score for p in points if p.cell.family != FLOOR] or [p.score for p in points]
    percent = bool(points[0].unit.mark)
    sign = direction(points[0].cell.metric)
    low, high = usual(scores, sign, 5.0 if percent else 0.1 * max(map(abs, scores)))
    heads = [p.score for p in points if p.cell.family == CONVERGED]
    low, high = min([low, *heads]), max([high, *heads])
    # Wide intervals at most double the range.
    ends = [end for p in points if low <= p.score <= high for end in p.bounds or ()]
    reach = (high - low) / 2
    low, high = max(min([low, *ends]), low - reach), min(max([high, *ends]), high + reach)
    # Half a percentage point or, for scores with units, 0.5% of the upper limit.
    pad = max(0.15 * (high - low), 0.5 if percent else 0.005 * high, 1e-9)
    return low - pad, min(high + pad, max(101.0, high + 1)) if percent else high + pad


def count(value: float, _: int) -> str:
    """The label of a tick at a number of parameters or bytes."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _common_title(titles: Sequence[str]) -> str:
    """The words with which all these titles begin. Without common words, the first two titles."""
    names = list(dict.fromkeys(titles))
    words = zip(*(name.split() for name in names), strict=False)
    shared = [each[0] for each in takewhile(lambda each: len(set(each)) == 1, words)]
    return " ".join(shared) or ", ".join(names[:2]) + ", …" * (len(names) > 2)


def _tip(cost: Cost, point: _Point) -> Iterator[str]:
    """Yields the lines of a point's tooltip: the method, its score with the interval, and its cost."""
    yield point.name
    yield point.unit.estimate(point.estimate.value, point.estimate.interval)
    yield f"{cost.label}: {point.cost:{cost.form}}"
    if not point.cell.complete:
        yield "trials are missing"
