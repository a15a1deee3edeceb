"""Scores against what they cost: parameters and memory.

Step times are of whatever else the machine did, and rank nothing.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from reports.analysis import Analysis
from reports.drawing import INK, MUTED, Drawn, Looks, Name, Plot, name_at_right, panels, themed
from reports.figures import hover
from reports.ranking import CostOf, best_means, pareto
from reports.study import (
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
from reports.units import unit_of

#: Settings that have a figure each.
MOST_SETTINGS = 12
#: Points of a panel beyond which whiskers would hide them.
MOST_WHISKERS = 60
#: How faint a point is that something else beats.
FAINT = 0.3


@dataclass(frozen=True)
class Cost:
    """What a cell costs, and the figure of it."""

    name: str
    title: str
    label: str
    of: CostOf
    caption: str = "Memory is of the machine that ran the trial: see Provenance for mixtures."


PARAMETERS = Cost(
    "score-vs-parameters",
    "Score against parameters",
    "adapter parameters",
    lambda cell: cell.parameters,
    "What has no adapter parameters is the dotted line.",
)
COSTS = (
    PARAMETERS,
    Cost("score-vs-memory", "Score against memory", "peak memory, MiB", lambda cell: cell.peak_mib),
)


@dataclass(frozen=True)
class _Point:
    """A cell as a point of a figure."""

    cell: Cell
    cost: float
    #: The mean score as it is shown: in percent, or in its units.
    score: float
    #: Whether nothing beats it for certain at no more cost.
    front: bool

    @property
    def name(self) -> str:
        cell = self.cell
        return cell.method + ("" if cell.budget == OWN_SIZE else f" ({cell.budget})")

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The 95% interval, shown likewise."""
        cell = self.cell
        if cell.low is None or cell.high is None:
            return None
        factor = unit_of(cell.metric).factor
        return factor * cell.low, factor * cell.high


def score_against(analysis: Analysis, cost: Cost, looks: Looks) -> list[Drawn]:
    """Score against a cost with the Pareto front: a figure a setting."""
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
        _figure(study, cost, looks, number, setting, some, more)
        for number, (setting, some) in enumerate(groups[:MOST_SETTINGS])
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
    limits = _limits(points)
    log = _far_apart(cost, dots)
    _draw(ax, dots, line, looks)
    ax.set_ylim(limits)
    if cost is PARAMETERS:
        _count_axis(ax, log)
    inside = [point for point in points if limits[0] <= point.score <= limits[1]]
    _floor(ax, points, free, inside)
    named = {point.cell.number: point for point in (*line, *_reference(dots)) if point in inside}.values()
    name_at_right(ax, [Name(p.name, p.cost, p.score, looks.colour(p.cell.family)) for p in named])
    _legend(ax, looks, {point.cell.family for point in dots})
    first, unit = points[0].cell, unit_of(points[0].cell.metric)
    scale = measured([first]) + (f", {unit.mark}" if unit.mark else "")
    ax.set_xlabel(cost.label)
    ax.set_ylabel(scale)
    best_names = f"from cheap to dear: {', '.join(p.name for p in line) or 'none'}"
    caption = (
        "The mean over seeds, hollow where some are missing. Faint: off the Pareto front, since something "
        f"that costs no more is better for certain. The line joins the best means, {best_names}. "
        f"{'Whiskers are 95% intervals. ' if _whiskered(dots) else ''}{cost.caption}"
        f"{_dotted(free) if cost is not PARAMETERS else ''}{more}"
    )
    alternative = f"The best means, {best_names}."
    return Drawn(
        f"{cost.name}-{number}",
        f"{cost.title}, {setting}",
        caption,
        alternative,
        figure,
        plot=_plot(study, cost, looks, (dots, line, free), limits, log, scale),
        settings=(setting,),
    )


def _dotted(free: Sequence[_Point]) -> str:
    return f" The dotted line is {free[0].name}." if free else ""


def _limits(points: Sequence[_Point]) -> tuple[float, float]:
    """Around all means but the floor's, which is far below: what is compared would be a line."""
    scores = [p.score for p in points if p.cell.family != FLOOR] or [p.score for p in points]
    low, high, percent = min(scores), max(scores), bool(unit_of(points[0].cell.metric).mark)
    # Half a point, or of scores with units as much of the largest.
    pad = max(0.15 * (high - low), 0.5 if percent else 0.005 * high, 1e-9)
    return low - pad, min(high + pad, max(101.0, high + 1)) if percent else high + pad


def _reference(points: Sequence[_Point]) -> list[_Point]:
    """The best LoRA."""
    lora = [point for point in points if point.cell.family == REFERENCE]
    return sorted(lora, key=lambda point: -(point.cell.gain or 0.0))[:1]


def _far_apart(cost: Cost, points: Sequence[_Point]) -> bool:
    """Whether parameters need a logarithmic axis."""
    counts = [point.cost for point in points]
    return cost is PARAMETERS and bool(counts) and max(counts) > 8 * min(counts)


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
    """Whether intervals are drawn: of more points they would hide one another."""
    return len(dots) <= MOST_WHISKERS


def _draw(ax: Axes, dots: Sequence[_Point], line: Sequence[_Point], looks: Looks) -> None:
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
            colour, alpha = looks.colour(point.cell.family), 0.5 if point.front else 0.15
            ax.plot([point.cost] * 2, point.bounds, color=colour, lw=0.7, alpha=alpha, zorder=2)
    for (family, complete, front), group in grouped(dots, _kind).items():
        ax.scatter(
            [point.cost for point in group],
            [point.score for point in group],
            s=26,
            marker=looks.shape(family),
            edgecolor=looks.colour(family),
            facecolor=looks.colour(family) if complete else "none",
            linewidth=1,
            alpha=_opacity(complete, front),
            zorder=3,
        )


def _kind(point: _Point) -> tuple[str, bool, bool]:
    """What looks alike."""
    return point.cell.family, point.cell.complete, point.front


def _opacity(complete: bool, front: bool) -> float:
    """Faint is what is beaten for certain, which is said of nothing that lacks seeds."""
    return 1 if front or not complete else FAINT


def _floor(ax: Axes, points: Sequence[_Point], free: Sequence[_Point], inside: Sequence[_Point]) -> None:
    """Lines at the scores of what costs nothing; what lies below the panel is told."""
    for point in free:
        if point in inside:
            ax.axhline(point.score, color=MUTED, lw=0.9, ls=":", zorder=1)
            _note(ax, point.name, (0.99, point.score), "data")
    outside = [point for point in points if point not in inside]
    if outside:
        _note(ax, _outside(outside), (0.99, 0.01), "axes fraction")


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


def _outside(points: Sequence[_Point]) -> str:
    return "outside: " + ", ".join(f"{p.name} {unit_of(p.cell.metric).score(p.cell.mean, 1)}" for p in points)


def _legend(ax: Axes, looks: Looks, families: set[str]) -> None:
    if len(families) < 2:
        return
    handles = [
        Line2D([], [], color=looks.colour(f), marker=looks.shape(f), ls="", ms=5, label=f.replace("_", " "))
        for f in looks.families
        if f in families
    ]
    ax.figure.legend(handles=handles, loc="outside lower left", ncols=min(8, len(handles)))


# --- in the page ---


def _plot(
    study: Study,
    cost: Cost,
    looks: Looks,
    points: tuple[Sequence[_Point], Sequence[_Point], Sequence[_Point]],
    limits: tuple[float, float],
    log: bool,
    scale: str,
) -> Plot:
    dots, line, free = points
    traces: list[hover.Trace] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [point.cost for point in line],
            "y": [float(f"{point.score:.6g}") for point in line],
            "line": {"color": themed(MUTED), "width": 1, "shape": "hv"},
            "hoverinfo": "skip",
            "showlegend": False,
        }
    ]
    seen: set[str] = set()
    # The legend looks like what is on the front, if anything of the family is.
    for (family, complete, front), group in grouped(sorted(dots, key=lambda p: not p.front), _kind).items():
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": hover.safe(family.replace("_", " ")),
                "legendgroup": hover.safe(family),
                "showlegend": family not in seen,
                "x": [point.cost for point in group],
                "y": [float(f"{point.score:.6g}") for point in group],
                "marker": hover.markers(
                    looks, family, opacity=_opacity(complete, front), hollow=not complete
                ),
                "hoverinfo": "text",
                "hovertext": [_told(study, cost, point) for point in group],
            }
            | (_whiskers(group, looks) if front and _whiskered(dots) else {})
        )
        seen.add(family)
    return hover.plot(
        traces,
        height=400,
        x={"title": {"text": cost.label}, "type": "log" if log else "linear"},
        y={"title": {"text": hover.safe(scale)}, "range": list(limits)},
        shapes=[_level(point) for point in free],
        annotations=_told_outside([p for p in (*dots, *free) if not limits[0] <= p.score <= limits[1]]),
    )


def _whiskers(points: Sequence[_Point], looks: Looks) -> hover.Trace:
    """The intervals of points that look alike."""
    ends = [point.bounds or (point.score, point.score) for point in points]
    error = {
        "type": "data",
        "symmetric": False,
        "array": [float(f"{high - p.score:.6g}") for p, (_, high) in zip(points, ends, strict=True)],
        "arrayminus": [float(f"{p.score - low:.6g}") for p, (low, _) in zip(points, ends, strict=True)],
        "color": themed(looks.colour(points[0].cell.family)),
        "thickness": 0.7,
        "width": 0,
    }
    return {"error_y": error}


def _level(point: _Point) -> hover.Trace:
    """A line at the score of what costs nothing, with its name."""
    ends = {"xref": "paper", "x0": 0, "x1": 1, "y0": point.score, "y1": point.score}
    return {"type": "line", "line": hover.line(MUTED), "label": hover.label(point.name)} | ends


def _told_outside(points: Sequence[_Point]) -> list[hover.Trace]:
    if not points:
        return []
    at = {"xref": "paper", "yref": "paper", "x": 1, "y": 0, "xanchor": "right", "yanchor": "bottom"}
    return [at | {"text": hover.safe(_outside(points)), "showarrow": False, "font": {"color": themed(INK)}}]


def _told(study: Study, cost: Cost, point: _Point) -> str:
    cell, unit = point.cell, unit_of(point.cell.metric)
    bounds = "" if point.bounds is None else f" ({unit.score(cell.low)} to {unit.score(cell.high)})"
    return hover.text(
        point.name,
        f"{unit.score(cell.mean)}{bounds}",
        f"{cost.label}: {point.cost:,.0f}" if cost is PARAMETERS else f"{cost.label}: {point.cost:,.2f}",
        *hover.seeds(study.of_cell(cell.number), unit),
        _standing(point),
    )


def _standing(point: _Point) -> str:
    if not point.cell.complete:
        return "seeds are missing"
    return "on the Pareto front" if point.front else "beaten for certain at no more cost"
