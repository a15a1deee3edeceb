"""Training curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from reports.curves import Curve, Panel
from reports.drawing import Drawn, Looks, Name, Plot, name_at_right, panels, themed
from reports.figures import hover
from reports.study import FLOOR, REFERENCE, grouped
from reports.units import Unit, unit_of

#: Lines that tell the methods of one family apart.
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)))

#: Epochs beyond which markers would run together, and beyond which points do not tell their seeds.
MOST_MARKERS, MOST_TOLD = 8, 40
#: The part of a training after which every curve is inside of the panel.
BEGUN = 0.25


def training(curves: Sequence[Curve], looks: Looks) -> list[Drawn]:
    """Validation score by epoch: a figure a setting and budget."""
    by_panel = grouped(curves, lambda curve: curve.panel)
    return [_figure(number, panel, shown, looks) for number, (panel, shown) in enumerate(by_panel.items())]


def _figure(number: int, panel: Panel, curves: Sequence[Curve], looks: Looks) -> Drawn:
    figure, (ax,) = panels(1, height=3.6, wide=True)
    unit = unit_of(curves[0].metric)
    limits = _limits(curves, unit)
    styles = list(_styles(curves))
    for curve, (dash, width) in zip(curves, styles, strict=True):
        ax.plot(
            curve.epochs,
            unit.factor * curve.values,
            color=looks.colour(curve.family),
            lw=width,
            ls=LINES[dash],
            marker=looks.shape(curve.family) if len(curve.epochs) <= MOST_MARKERS else None,
            ms=3,
        )
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
        plot=_plot(curves, styles, looks, limits, unit, alike=alike),
        budget=panel.budget,
        settings=(panel.setting,),
    )


def _caption(curves: Sequence[Curve], *, alike: bool) -> str:
    first = curves[0]
    short = f" ({first.seeds} of {first.planned})" if alike and first.seeds < first.planned else ""
    return (
        f"Validation score after each epoch, the mean over the seeds that have one{short}. The first epochs "
        "and head only may lie outside of the frame."
    )


def _styles(curves: Sequence[Curve]) -> Iterator[tuple[int, float]]:
    """The number of its dashes and the width of each line."""
    drawn_of: Counter[str] = Counter()
    for curve in curves:
        yield drawn_of[curve.family] % len(LINES), 1.8 if curve.family == REFERENCE else 1
        drawn_of[curve.family] += 1


def _measured(unit: Unit) -> str:
    return "validation score" + (f", {unit.mark}" if unit.mark else "")


def _limits(curves: Sequence[Curve], unit: Unit) -> tuple[float, float]:
    """Around what the curves have once they have begun to learn, but for the floor's: it and the first epochs
    would leave of the rest a line.
    """
    shown = [curve for curve in curves if curve.family != FLOOR] or curves
    values = unit.factor * np.concatenate(
        [curve.values[curve.epochs >= BEGUN * curve.epochs[-1]] for curve in shown]
    )
    pad = max(0.08 * (values.max() - values.min()), 0.5 if unit.mark else 0.005 * abs(values).max(), 1e-9)
    return float(values.min() - pad), float(values.max() + pad)


def _ends(
    curves: Sequence[Curve], limits: tuple[float, float], looks: Looks, unit: Unit, *, alike: bool
) -> Iterator[Name]:
    """The curves' names at their ends; of one that ends outside of the frame with where it ends."""
    for curve in curves:
        end = unit.factor * float(curve.values[-1])
        name = curve.method if alike else curve.label
        if not limits[0] <= end <= limits[1]:
            name += f" ({unit.score(float(curve.values[-1]), 1)}, outside)"
        x, y = float(curve.epochs[-1]), min(max(end, limits[0]), limits[1])
        yield Name(name, x, y, looks.colour(curve.family))


def _plot(
    curves: Sequence[Curve],
    styles: Sequence[tuple[int, float]],
    looks: Looks,
    limits: tuple[float, float],
    unit: Unit,
    *,
    alike: bool,
) -> Plot:
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(curve.epochs) <= MOST_TOLD else "lines",
            "name": hover.safe(curve.method if alike else curve.label),
            "x": curve.epochs.tolist(),
            "y": [float(f"{unit.factor * value:.6g}") for value in curve.values],
            "line": {"color": themed(looks.colour(curve.family)), "width": width}
            | {"dash": hover.DASHES[dash]},
            "marker": hover.markers(looks, curve.family) | {"size": 5},
            "hoverinfo": "text",
            "hovertext": [_told(curve, place, unit) for place in range(len(curve.epochs))],
        }
        for curve, (dash, width) in zip(curves, styles, strict=True)
    ]
    return hover.plot(
        traces,
        height=420,
        x={"title": {"text": "epoch"}},
        y={"title": {"text": _measured(unit)}, "range": list(limits)},
    )


def _told(curve: Curve, place: int, unit: Unit) -> str:
    seeds = [
        f"seed {seed}: {unit.score(float(values[place]))}"
        for seed, values in curve.of_seeds.items()
        if len(curve.epochs) <= MOST_TOLD and not np.isnan(values[place])
    ]
    mean = f"{unit.score(float(curve.values[place]))} after epoch {curve.epochs[place]:g}"
    return hover.text(curve.method, mean, *seeds)
