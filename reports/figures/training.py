"""Figures of training curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from tensorbench.metrics import direction
from tensorbench.reports.curves import Curve, Panel
from tensorbench.reports.drawing import Drawn, Looks, PointName, Tips, name_at_right, panels, usual
from tensorbench.reports.results import FLOOR, REFERENCE, grouped
from tensorbench.reports.units import Unit, unit_of

#: The line styles that distinguish the methods of one family.
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)))

#: The largest number of marked epochs on a curve. If there are more epochs, evenly spaced ones are marked.
MOST_MARKS = 8
#: The scores in this first fraction of the training do not affect the limits of the panel.
BEGUN = 0.25


def training(curves: Sequence[Curve], looks: Looks) -> list[Drawn]:
    """The figures of validation scores by epoch, one per setting and budget.

    Curves with a single epoch are left out.
    """
    by_panel = grouped((curve for curve in curves if len(curve.epochs) > 1), lambda curve: curve.panel)
    return [_figure(number, panel, shown, looks) for number, (panel, shown) in enumerate(by_panel.items())]


def _figure(number: int, panel: Panel, curves: Sequence[Curve], looks: Looks) -> Drawn:
    figure, (ax,) = panels(1, height=3.6, wide=True)
    unit = unit_of(curves[0].metric)
    limits, tips = _limits(curves, unit), Tips()
    for curve, (dash, width) in zip(curves, _styles(curves), strict=True):
        ax.plot(
            curve.epochs,
            unit.factor * curve.values,
            color=looks.colour(curve.family),
            lw=width,
            ls=LINES[dash],
        )
        _draw_marks(ax, curve, limits, looks, unit, tips)
    ax.set_ylim(limits)
    alike = len({(curve.seeds, curve.planned) for curve in curves}) == 1
    name_at_right(ax, list(_ends(curves, limits, looks, unit, alike=alike)))
    ax.set_xlabel("epoch")
    ax.set_ylabel(_measured(unit))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    return Drawn(
        f"training-curves-{number}",
        f"Training curves, {panel}",
        _caption(curves, alike=alike),
        "; ".join(f"{c.method} ends at {unit.score(float(c.values[-1]), 1)}" for c in curves),
        figure,
        tips,
    )


def _caption(curves: Sequence[Curve], *, alike: bool) -> str:
    first = curves[0]
    short = f" ({first.seeds} of {first.planned})" if alike and first.seeds < first.planned else ""
    return (
        f"Validation score after each epoch, the mean over the seeds that have one{short}. The first epochs "
        "and head only may lie outside the frame."
    )


def _styles(curves: Sequence[Curve]) -> Iterator[tuple[int, float]]:
    """Yields the index of the dash pattern, and the width, of each line."""
    counts: Counter[str] = Counter()
    for curve in curves:
        yield counts[curve.family] % len(LINES), 1.8 if curve.family == REFERENCE else 1
        counts[curve.family] += 1


def _measured(unit: Unit) -> str:
    return "validation score" + (f", {unit.mark}" if unit.mark else "")


def _limits(curves: Sequence[Curve], unit: Unit) -> tuple[float, float]:
    """The limits of the score axis. The first epochs, the head alone and collapsed methods do not count."""
    shown = [curve for curve in curves if curve.family != FLOOR] or curves
    values = unit.factor * np.concatenate(
        [curve.values[curve.epochs >= BEGUN * curve.epochs[-1]] for curve in shown]
    )
    largest = float(abs(values).max())
    low, high = usual(values, direction(curves[0].metric), 5.0 if unit.mark else 0.1 * largest)
    pad = max(0.08 * (high - low), 0.5 if unit.mark else 0.005 * largest, 1e-9)
    return low - pad, high + pad


def _ends(
    curves: Sequence[Curve], limits: tuple[float, float], looks: Looks, unit: Unit, *, alike: bool
) -> Iterator[PointName]:
    """Yields the names at the ends of the curves, with the score if a curve ends outside the panel."""
    for curve in curves:
        end = unit.factor * float(curve.values[-1])
        name = curve.method if alike else curve.label
        if not limits[0] <= end <= limits[1]:
            name += f" ({unit.score(float(curve.values[-1]), 1)}, outside)"
        x, y = float(curve.epochs[-1]), min(max(end, limits[0]), limits[1])
        yield PointName(name, x, y, looks.colour(curve.family))


def _draw_marks(
    ax: Axes, curve: Curve, limits: tuple[float, float], looks: Looks, unit: Unit, tips: Tips
) -> None:
    """Draws marks at some epochs. Their tooltips show the scores of the seeds."""
    count = len(curve.epochs)
    places = [
        place
        for place in sorted({round(at) for at in np.linspace(0, count - 1, min(count, MOST_MARKS))})
        if limits[0] <= unit.factor * curve.values[place] <= limits[1]
    ]
    marks = ax.scatter(
        curve.epochs[places],
        unit.factor * curve.values[places],
        s=10,
        marker=looks.shape(curve.family),
        color=looks.colour(curve.family),
        lw=0,
        zorder=3,
    )
    tips.put(marks, [_tip(curve, place, unit) for place in places])


def _tip(curve: Curve, place: int, unit: Unit) -> str:
    seeds = [
        f"seed {seed}: {unit.score(float(values[place]))}"
        for seed, values in curve.of_seeds.items()
        if not np.isnan(values[place])
    ]
    mean = f"{unit.score(float(curve.values[place]))} after epoch {curve.epochs[place]:g}"
    return "\n".join([curve.method, mean, *seeds])
