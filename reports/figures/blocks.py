"""The figures of one budget: differences from the reference, and ranks."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import TypedDict

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bench.metrics import direction
from reports import cautions
from reports.analysis import Block
from reports.comparisons import AgainstReference
from reports.drawing import INK, MUTED, RULE, Drawn, Looks, Plot, panels, themed
from reports.figures import hover
from reports.inference.intervals import Bounds
from reports.study import Study, TaskAndBackbone
from reports.words import many, no_interval

#: Methods of one panel, and seed pairs of one setting that a point tells.
MOST_METHODS, MOST_PAIRS = 40, 10


class OfBlock(TypedDict):
    """Those fields of a figure that say what it is of."""

    budget: str
    settings: tuple[TaskAndBackbone, ...]


def differences(study: Study, block: Block, number: int, looks: Looks) -> Drawn | None:
    """Difference from the reference with its interval."""
    shown = sorted(block.comparisons, key=lambda c: c.effect.difference)[-MOST_METHODS:]
    if len(shown) < 2 or block.reference is None:
        return None
    threshold, unit = block.threshold, block.unit
    figure, (ax,) = panels(1, height=_height(shown))
    ax.axvspan(-unit.factor * threshold, unit.factor * threshold, color=RULE, alpha=0.5, lw=0)
    ax.axvline(0, color=MUTED, lw=0.8)
    for y, comparison in enumerate(shown):
        interval = comparison.interval
        in_points = interval and (unit.factor * interval[0], unit.factor * interval[1])
        _dot(ax, unit.factor * comparison.effect.difference, y, in_points, comparison.family, looks)
    level = cautions.above_reference(study, block)
    reach = unit.factor * _reach(shown, threshold, level)
    if level is not None:
        ax.axvline(unit.factor * level, color=MUTED, lw=0.9, ls=":", zorder=1)
    ax.set_xlim(-reach, reach)
    ax.set_yticks(range(len(shown)), [comparison.method for comparison in shown])
    ax.tick_params(axis="y", labelcolor=INK)
    ax.set_ylim(-0.6, len(shown) - 0.4)
    reference = block.reference.method
    ax.set_xlabel(_measured(block))
    caption = (
        f"Mean difference from {reference} over {_settings(block)}, with its interval (cut at the frame); "
        f"all intervals hold at once with {block.held}. The band is ±{unit.factor * threshold:.3g} "
        f"{unit.points}, the smallest difference taken to matter."
        + (f" The dotted line is the converged head: {unit.difference(level)}." if level is not None else "")
    ) + _left_out(shown, block.comparisons)
    alternative = "; ".join(f"{c.method} {unit.difference(c.effect.difference)}" for c in reversed(shown))
    title = f"Against {reference}, {block.title}"
    return Drawn(
        f"differences-{number}",
        title,
        caption,
        alternative,
        figure,
        plot=_forest(study, block, shown, reach, level, looks),
        **of_block(block),
    )


def _forest(
    study: Study,
    block: Block,
    shown: Sequence[AgainstReference],
    reach: float,
    level: float | None,
    looks: Looks,
) -> Plot:
    """The differences for the page, each with those of its seed pairs."""
    traces: list[hover.Trace] = []
    factor = block.unit.factor
    for y, found in enumerate(shown):
        low, high = found.interval or (found.effect.difference,) * 2
        marker = hover.markers(looks, found.family)
        trace = {
            "type": "scatter",
            "mode": "markers",
            "showlegend": False,
            "x": [float(f"{factor * found.effect.difference:.6g}")],
            "y": [y],
            "marker": marker,
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [float(f"{factor * (high - found.effect.difference):.6g}")],
                "arrayminus": [float(f"{factor * (found.effect.difference - low):.6g}")],
                "color": marker["color"],
                "thickness": 1.5,
                "width": 0,
            },
            "hoverinfo": "text",
            "hovertext": [_pairs(study, block, found)],
        }
        traces.append(trace)
    band = {
        "type": "rect",
        "layer": "below",
        "yref": "paper",
        "x0": -factor * block.threshold,
        "x1": factor * block.threshold,
        "y0": 0,
        "y1": 1,
        "line": {"width": 0},
        "fillcolor": themed(RULE),
        "opacity": 0.5,
    }
    zero = {"type": "line", "layer": "below", "yref": "paper", "x0": 0, "x1": 0, "y0": 0, "y1": 1}
    lines = [zero | {"line": hover.line(MUTED, "solid")}]
    if level is not None:
        at = {"x0": factor * level, "x1": factor * level, "line": hover.line(MUTED)}
        lines.append(zero | at | {"label": hover.label("converged head")})
    names = [hover.safe(found.method) for found in shown]
    return hover.plot(
        traces,
        height=90 + 22 * len(shown),
        x={"title": {"text": hover.safe(_measured(block))}, "range": [-reach, reach]},
        y={
            "tickvals": list(range(len(shown))),
            "ticktext": names,
            "range": [-0.7, len(shown) - 0.3],
            "tickfont": {"color": themed(INK)},
        },
        shapes=[band, *lines],
    )


def _pairs(study: Study, block: Block, found: AgainstReference) -> str:
    """What appears at a difference: its interval and verdict, and the difference of each seed pair."""
    unit, bounds = block.unit, no_interval(found.effect.fewest)
    if found.interval:
        bounds = f"{unit.difference(found.interval[0])} to {unit.difference(found.interval[1])}"
    lines = []
    pairs = zip(block.settings, found.cells, found.reference_cells, strict=True)
    for setting, *cells in pairs:
        seeds, (own, other) = study.gains(cells)
        told = [
            f"seed {seed} {unit.difference(float(d))}" for seed, d in zip(seeds, own - other, strict=True)
        ]
        lines.append(f"{setting.task}: {', '.join(told[:MOST_PAIRS])}" + ", …" * (len(told) > MOST_PAIRS))
    difference = f"{unit.difference(found.effect.difference)} {unit.points} ({bounds})"
    return hover.text(found.method, difference, str(found.verdict), *lines)


def _reach(shown: Sequence[AgainstReference], threshold: float, level: float | None) -> float:
    """How far the axis reaches to either side of zero: no wide interval may leave nothing else to see.

    Nor may the `level` of the converged head, which is outside where it is more than twice as far.
    """
    reach = max(2.2 * max(abs(c.effect.difference) for c in shown), 2.5 * threshold)
    ends = [abs(bound) for c in shown for bound in c.interval or ()]
    reach = max(min(reach, 1.05 * max(ends)) if ends else reach, 1.5 * threshold)
    return max(reach, 1.05 * abs(level)) if level is not None and abs(level) <= 2 * reach else reach


def _measured(block: Block) -> str:
    reference = block.reference.method if block.reference else ""
    side = "above" if direction(block.metric) > 0 else "below"
    return f"{block.unit.points} {side} {reference}"


def ranks(study: Study, block: Block, number: int, looks: Looks) -> Drawn | None:
    """Mean ranks with intervals."""
    if block.ranking is None or len(block.methods) < 2:
        return None
    found, letters = block.ranking.ranks, block.ranking.letters or ()
    methods = block.methods[:MOST_METHODS]
    figure, (ax,) = panels(1, height=_height(methods))
    for y, method in enumerate(methods):
        interval = None
        if found.low is not None and found.high is not None:
            interval = (found.low[y], found.high[y])
        _dot(ax, found.place[y], -y, interval, family_of(study, block, method), looks)
        if y < len(letters):
            ax.annotate(
                letters[y],
                (1.02, -y),
                xycoords=("axes fraction", "data"),
                va="center",
                color=MUTED,
                annotation_clip=False,
            )
    ax.set_yticks([-y for y in range(len(methods))], methods)
    ax.tick_params(axis="y", labelcolor=INK)
    ax.set_ylim(-len(methods) + 0.4, 0.6)
    ax.set_xlim(0.7, len(block.methods) + 0.3)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("rank (1 is best)")
    caption = f"Rank by the mean score over {_settings(block)}, in order of the mean of each setting's ranks."
    if found.low is not None:
        caption += (
            " Intervals are the ranks that are left by who is apart from whom; all hold at once with "
            f"{block.held}."
        )
    if letters:
        caption += " Methods that share a letter at the right cannot be told apart."
    caption += _left_out(methods, block.methods)
    alternative = "; ".join(f"{m} {r:.1f}" for m, r in zip(methods, found.place, strict=False))
    return Drawn(
        f"ranks-{number}", f"Ranks, {block.heading}", caption, alternative, figure, **of_block(block)
    )


def of_block(block: Block) -> OfBlock:
    """What the figures of a block are of."""
    return {"budget": block.budget, "settings": block.settings}


def _height(rows: Sized) -> float:
    """Inches of a figure with so many rows."""
    return 0.9 + 0.23 * len(rows)


def _dot(
    ax: Axes,
    value: float,
    y: float,
    interval: Bounds | None,
    family: str,
    looks: Looks,
) -> None:
    """A value with its interval, in the colour and shape of its family."""
    colour = looks.colour(family)
    if interval:
        ax.plot(interval, [y, y], color=colour, lw=1.4, solid_capstyle="butt")
    ax.scatter(value, y, s=24, color=colour, marker=looks.shape(family), zorder=3)


def family_of(study: Study, block: Block, method: str) -> str:
    """The family of one of a block's methods, which has its colour and shape."""
    return study.all_cells[block.cells[method][0]].family


def _settings(block: Block) -> str:
    return many(len(block.settings), "setting")


def _left_out(drawn: Sized, of: Sized) -> str:
    return f" The best {len(drawn)} of {len(of)} methods." if len(drawn) < len(of) else ""
