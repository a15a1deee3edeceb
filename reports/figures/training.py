"""Training curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from reports.curves import Curve
from reports.drawing import Drawn, Looks, panels, spread
from reports.study import REFERENCE, grouped
from reports.units import unit_of

#: Lines that tell the methods of one family apart.
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)))

#: Epochs beyond which markers would run together.
MOST_MARKERS = 12


def training(curves: Sequence[Curve], looks: Looks) -> Drawn | None:
    """Validation score by epoch, a panel a setting and budget."""
    by_panel = grouped(curves, lambda curve: curve.panel)
    if not by_panel:
        return None
    figure, axes = panels(len(by_panel), height=3.2)
    told: dict[str, str] = {}
    for ax, (title, shown) in zip(axes, by_panel.items(), strict=True):
        drawn_of: Counter[str] = Counter()
        for curve in shown:
            gid = f"t{len(told)}"
            ax.plot(
                curve.epochs,
                unit_of(curve.metric).factor * curve.values,
                color=looks.colour(curve.family),
                lw=1.8 if curve.family == REFERENCE else 1,
                ls=LINES[drawn_of[curve.family] % len(LINES)],
                marker=looks.shape(curve.family) if len(curve.epochs) <= MOST_MARKERS else None,
                ms=3,
                gid=gid,
            )
            drawn_of[curve.family] += 1
            end = unit_of(curve.metric).score(curve.values[-1])
            told[gid] = f"{curve.label}: {end} after epoch {curve.epochs[-1]:g}"
        _name_ends(ax, shown, looks)
        ax.set_title(title)
        ax.set_xlabel("epoch")
        mark = unit_of(shown[0].metric).mark
        ax.set_ylabel("validation score" + (f", {mark}" if mark else ""))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    caption = "Validation score after each epoch, the mean over the seeds that have one."
    alternative = "; ".join(
        f"{c.method} on {c.panel} ends at {unit_of(c.metric).score(c.values[-1], 1)}" for c in curves[:12]
    )
    return Drawn("training-curves", "Training curves", caption, alternative, figure, told)


def _name_ends(ax: Axes, curves: Sequence[Curve], looks: Looks) -> None:
    """The curves' names at their ends, moved apart."""
    last = max(curve.epochs[-1] for curve in curves)
    low, high = ax.get_ylim()
    ends = [unit_of(curve.metric).factor * curve.values[-1] for curve in curves]
    for curve, end, y in zip(curves, ends, spread(ends, (high - low) / 17, high), strict=True):
        ax.annotate(
            curve.label,
            (curve.epochs[-1], end),
            (last + 0.04 * max(1, last - 1), y),
            textcoords="data",
            fontsize=7.5,
            va="center",
            color=looks.colour(curve.family),
            annotation_clip=False,
        )
