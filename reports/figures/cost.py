"""Scores against what they cost: parameters, time and memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from reports.drawing import MUTED, Drawn, Looks, panels, spread
from reports.pareto import pareto
from reports.study import OWN_SIZE, Cell, Study, grouped
from reports.units import Unit, unit_of

#: Settings of one figure, and points that can be pointed at in one.
MOST_PANELS, MOST_POINTED = 12, 400
#: Cells of a panel beyond which whiskers would hide the points, and names on it.
MOST_WHISKERS, MOST_NAMES = 60, 8


@dataclass(frozen=True)
class Cost:
    """What a cell costs, and the figure of it."""

    name: str
    title: str
    label: str
    of: Callable[[Cell], float | None]
    caption: str = "Times and memory are of the machine that ran the trial: see Provenance for mixtures."


PARAMETERS = Cost(
    "score-vs-parameters",
    "Score against parameters",
    "adapter parameters",
    lambda cell: cell.parameters,
    "A method without adapter parameters is the dotted line.",
)
COSTS = (
    PARAMETERS,
    Cost(
        "score-vs-step-time", "Score against step time", "median training step, ms", lambda cell: cell.step_ms
    ),
    Cost("score-vs-memory", "Score against memory", "peak memory, MiB", lambda cell: cell.peak_mib),
)


@dataclass(frozen=True)
class _Point:
    """A cell as a point of a figure."""

    cell: Cell
    cost: float
    #: The mean score as it is shown: in percent, or in its units.
    score: float

    @property
    def name(self) -> str:
        cell = self.cell
        where = "" if cell.budget == OWN_SIZE else f" ({cell.budget})"
        return f"{cell.method}{where} on {cell.setting}"


def score_against(study: Study, cost: Cost, looks: Looks) -> Drawn | None:
    """Score against a cost, a panel a setting, with the Pareto front."""
    points = _points(study.all_cells, cost)
    if not points:
        return None
    groups = list(grouped(points, lambda point: point.cell.setting).items())
    figure, axes = panels(min(len(groups), MOST_PANELS), height=3.1)
    told: dict[str, str] = {}
    families: set[str] = set()
    for ax, (setting, some) in zip(axes, groups, strict=False):
        ax.set_title(str(setting))
        families |= {point.cell.family for point in some if not _free(point, cost)}
        told |= _panel(ax, some, cost, looks, pointed=len(points) <= MOST_POINTED)
    _legend(axes[0], looks, families)
    caption = (
        "Each point is a row of the results: the mean over its seeds, hollow where seeds are missing. "
        "The grey line is the Pareto front of complete rows; what stands on it is named. Whiskers are 95% "
        f"intervals of three seeds or more, cut at the frame. {cost.caption}"
    )
    if len(groups) > MOST_PANELS:
        caption += f" The first {MOST_PANELS} of {len(groups)} settings."
    best = ", ".join(point.name for point in _front(points, cost)[:8])
    alternative = f"On the Pareto front: {best or 'no complete row'}."
    return Drawn(cost.name, cost.title, caption, alternative, figure, told)


def _points(cells: Sequence[Cell], cost: Cost) -> list[_Point]:
    return [
        _Point(cell, cost_of, unit_of(cell.metric).factor * cell.mean)
        for cell in cells
        if cell.mean is not None and (cost_of := cost.of(cell)) is not None
    ]


def _front(points: Sequence[_Point], cost: Cost) -> list[_Point]:
    return _points(pareto((point.cell for point in points), cost.of), cost)


def _count_axis(ax: Axes, counts: Sequence[float]) -> None:
    """Numbers of parameters along the axis, on a logarithmic scale where they lie far apart."""
    ax.xaxis.set_major_formatter(FuncFormatter(_count))
    if counts and max(counts) > 8 * min(counts):
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(_count))
        ax.xaxis.set_minor_formatter(NullFormatter())


def _count(value: float, _: int) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _panel(ax: Axes, points: Sequence[_Point], cost: Cost, looks: Looks, *, pointed: bool) -> dict[str, str]:
    """Draws the points of one setting with their front; returns what they are called when pointed at."""
    _floor(ax, [point for point in points if _free(point, cost)])
    dots = [point for point in points if not _free(point, cost)]
    if cost is PARAMETERS:
        _count_axis(ax, [point.cost for point in dots])
    front = [point for point in _front(points, cost) if not _free(point, cost)]
    ax.plot(
        [point.cost for point in front],
        [point.score for point in front],
        color=MUTED,
        lw=0.9,
        drawstyle="steps-post",
        zorder=1,
    )
    if len(dots) <= MOST_WHISKERS:
        _whiskers(ax, dots, looks)
    told = _scatter(ax, dots, cost, looks, pointed=pointed)
    unit = unit_of(points[0].cell.metric)
    _limits(ax, [point.score for point in points], unit)
    _label(ax, front)
    ax.set_xlabel(cost.label)
    if dots:
        ax.set_ylabel(
            f"{dots[0].cell.evaluated} {dots[0].cell.metric}" + (f", {unit.mark}" if unit.mark else "")
        )
    return told


def _free(point: _Point, cost: Cost) -> bool:
    """Whether the point is a line: what has no parameters has no place on a logarithmic axis."""
    return cost is PARAMETERS and point.cost == 0


def _scatter(
    ax: Axes, points: Sequence[_Point], cost: Cost, looks: Looks, *, pointed: bool
) -> dict[str, str]:
    """A dot a point. Where they can be pointed at, each is an element of its own that has a name."""
    told: dict[str, str] = {}
    for (family, complete), group in grouped(points, lambda p: (p.cell.family, p.cell.complete)).items():
        for part in [[point] for point in group] if pointed else [group]:
            gid = f"p{part[0].cell.number}" if pointed else None
            ax.scatter(
                [point.cost for point in part],
                [point.score for point in part],
                s=26,
                marker=looks.shape(family),
                edgecolor=looks.colour(family),
                facecolor=looks.colour(family) if complete else "none",
                linewidth=1,
                zorder=3,
                gid=gid,
            )
            if gid is not None:
                told[gid] = f"{part[0].name}: {part[0].score:.2f}, {cost.label} {part[0].cost:,.0f}"
    return told


def _floor(ax: Axes, points: Sequence[_Point]) -> None:
    """Lines at the scores of what costs nothing."""
    for point in points:
        ax.axhline(point.score, color=MUTED, lw=0.9, ls=":", zorder=1)
        ax.annotate(
            point.cell.method,
            (1, point.score),
            (-2, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=7.5,
            color=MUTED,
        )


def _whiskers(ax: Axes, points: Sequence[_Point], looks: Looks) -> None:
    for point in points:
        cell = point.cell
        if cell.finished > 2 and cell.low is not None and cell.high is not None:
            ax.plot(
                [point.cost] * 2,
                [unit_of(cell.metric).factor * end for end in (cell.low, cell.high)],
                color=looks.colour(cell.family),
                lw=0.7,
                alpha=0.5,
                zorder=2,
            )


def _limits(ax: Axes, scores: Sequence[float], unit: Unit) -> None:
    """Around the means: two seeds' intervals would leave nothing else to see."""
    low, high = min(scores), max(scores)
    # A point, or of scores with units as much of the largest.
    pad = max(0.35 * (high - low), 1.0 if unit.mark else 0.01 * high, 1e-9)
    ax.set_ylim(low - pad, min(high + pad, max(101.0, high + 1)) if unit.mark else high + pad)


def _label(ax: Axes, points: Sequence[_Point]) -> None:
    """Names of a few points, beside them and moved apart."""
    named = points[:MOST_NAMES]
    low, high = ax.get_ylim()
    right = ax.get_xlim()[1]
    for point, at in zip(named, spread([point.score for point in named], (high - low) / 16), strict=True):
        x, end = (ax.transData.transform((where, point.score))[0] for where in (point.cost, right))
        beyond = x > end - 90
        ax.annotate(
            point.cell.method,
            (point.cost, at),
            (-6 if beyond else 6, 3),
            textcoords="offset points",
            ha="right" if beyond else "left",
            va="bottom",
            fontsize=7.5,
        )


def _legend(ax: Axes, looks: Looks, families: Collection[str]) -> None:
    if len(families) < 2:
        return
    handles = [
        Line2D([], [], color=looks.colour(f), marker=looks.shape(f), ls="", ms=5, label=f.replace("_", " "))
        for f in looks.families
        if f in families
    ]
    ax.figure.legend(handles=handles, loc="outside lower left", ncols=min(8, len(handles)))
