"""The figures of one budget: differences from the reference, ranks, P(better), normalised scores."""

from __future__ import annotations

from collections.abc import Sequence, Sized

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from bench.metrics import direction
from reports.analysis import Block
from reports.comparisons import AgainstReference
from reports.drawing import INK, MUTED, RULE, SERIES, Drawn, Looks, panels
from reports.inference.intervals import Bounds
from reports.study import Study
from reports.units import unit_of
from reports.words import many

#: Methods of one panel.
MOST_METHODS = 40


def differences(block: Block, number: int, looks: Looks) -> Drawn | None:
    """Difference from the reference with its interval."""
    shown = sorted(block.comparisons, key=lambda c: c.effect.difference)[-MOST_METHODS:]
    if len(shown) < 2 or block.reference is None:
        return None
    threshold, unit = block.threshold, unit_of(block.metric)
    figure, (ax,) = panels(1, height=_height(shown))
    ax.axvspan(-unit.factor * threshold, unit.factor * threshold, color=RULE, alpha=0.5, lw=0)
    ax.axvline(0, color=MUTED, lw=0.8)
    told: dict[str, str] = {}
    for y, comparison in enumerate(shown):
        difference = comparison.effect.difference
        interval = comparison.interval
        _dot(
            ax,
            unit.factor * difference,
            y,
            interval and (unit.factor * interval[0], unit.factor * interval[1]),
            comparison.family,
            looks,
            gid=f"d{y}",
        )
        told[f"d{y}"] = (
            f"{comparison.method}: {unit.difference(difference)} {unit.points}, {comparison.verdict}"
        )
    reach = unit.factor * _reach(shown, threshold)
    ax.set_xlim(-reach, reach)
    ax.set_yticks(range(len(shown)), [comparison.method for comparison in shown])
    ax.tick_params(axis="y", labelcolor=INK)
    ax.set_ylim(-0.6, len(shown) - 0.4)
    reference = block.reference.method
    ax.set_xlabel(f"{unit.points} {'above' if direction(block.metric) > 0 else 'below'} {reference}")
    caption = (
        f"Mean difference from {reference} over {_settings(block)}, with its interval (cut at the frame); "
        f"all intervals hold at once with 95%. The band is ±{unit.factor * threshold:.3g} {unit.points}, the "
        "smallest difference taken to matter."
    ) + _left_out(shown, block.comparisons)
    alternative = "; ".join(f"{c.method} {unit.difference(c.effect.difference)}" for c in reversed(shown))
    title = f"Against {reference}, {block.title}"
    return Drawn(f"differences-{number}", title, caption, alternative, figure, told)


def _reach(shown: Sequence[AgainstReference], threshold: float) -> float:
    """How far the axis reaches to either side of zero: no wide interval may leave nothing else to see."""
    reach = max(2.2 * max(abs(c.effect.difference) for c in shown), 2.5 * threshold)
    ends = [abs(bound) for c in shown for bound in c.interval or ()]
    return max(min(reach, 1.05 * max(ends)) if ends else reach, 1.5 * threshold)


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
        _dot(ax, found.place[y], -y, interval, _family(study, block, method), looks)
        if y < len(letters):
            ax.annotate(
                letters[y],
                (1.02, -y),
                xycoords=("axes fraction", "data"),
                va="center",
                color=MUTED,
                annotation_clip=False,
            )
    _name_rows(ax, methods, methods)
    ax.set_xlim(0.7, len(block.methods) + 0.3)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("rank (1 is best)")
    caption = f"Rank by the mean score over {_settings(block)}, in order of the mean of each setting's ranks."
    if found.low is not None:
        caption += (
            " Intervals are the ranks that are left by who is apart from whom; all hold at once with 95%."
        )
    if letters:
        caption += " Methods that share a letter at the right cannot be told apart."
    caption += _left_out(methods, block.methods)
    alternative = "; ".join(f"{m} {r:.1f}" for m, r in zip(methods, found.place, strict=False))
    return Drawn(f"ranks-{number}", f"Ranks, {block.title}", caption, alternative, figure)


def better(block: Block, number: int) -> Drawn | None:
    """Heat map of P(row beats column)."""
    if block.ranking is None or block.ranking.better is None:
        return None
    methods = block.ranking.paired
    size = 0.36 * len(methods)
    figure, (ax,) = panels(1, height=size + 1.6)
    figure.set_size_inches(min(size + 2.6, 11), size + 1.7)
    for i in range(len(methods)):
        for j in range(len(methods)):
            if i == j:
                continue
            p = float(block.ranking.better[i, j])
            colour = SERIES[0] if p > 0.5 else SERIES[1]
            ax.add_patch(
                Rectangle((j - 0.5, -i - 0.5), 1, 1, color=colour, alpha=0.45 * abs(2 * p - 1), lw=0)
            )
            ax.text(j, -i, f"{100 * p:.0f}", ha="center", va="center", fontsize=7.5)
    ax.set_xticks(range(len(methods)), methods, rotation=40, ha="left", rotation_mode="anchor")
    ax.set_yticks([-i for i in range(len(methods))], methods)
    ax.xaxis.tick_top()
    ax.tick_params(length=0, labelcolor=INK)
    ax.set_xlim(-0.5, len(methods) - 0.5)
    ax.set_ylim(-len(methods) + 0.5, 0.5)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    caption = (
        "Chance in % that a run of the row's method scores above a run of the column's (ties count half), "
        f"the mean over {_settings(block)}. Blue above 50, orange below; methods in order of mean rank."
    )
    alternative = "Its numbers stand in the table below."
    return Drawn(f"p-better-{number}", f"P(better), {block.title}", caption, alternative, figure)


def normalised(study: Study, block: Block, number: int, looks: Looks) -> Drawn | None:
    """Normalised aggregate by mean and by interquartile mean."""
    methods = [method for method in block.methods if method in block.aggregates][:MOST_METHODS]
    if not methods:
        return None
    found = [block.aggregates[method] for method in methods]
    shown: tuple[tuple[str, list[tuple[float, Bounds | None]]], ...] = (
        ("mean", [(one.mean, one.mean_interval) for one in found]),
        ("interquartile mean", [(one.iqm, None) for one in found]),
    )
    figure, axes = panels(2, height=_height(methods))
    for ax, (title, values) in zip(axes, shown, strict=True):
        for y, (method, (value, interval)) in enumerate(zip(methods, values, strict=True)):
            _dot(ax, value, -y, interval, _family(study, block, method), looks)
        _name_rows(ax, methods, methods if ax is axes[0] else [])
        ax.set_title(title)
        ax.set_xlabel("0: head only, 1: full fine-tuning")
    caption = (
        "Scores between head only and full fine-tuning, over all runs; 95% intervals over seeds, and over "
        "test examples where predictions are stored, of the ends as well."
    ) + _left_out(methods, block.aggregates)
    alternative = "; ".join(f"{m} {block.aggregates[m].mean:.2f}" for m in methods)
    return Drawn(f"normalised-{number}", f"Normalised score, {block.title}", caption, alternative, figure)


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
    gid: str | None = None,
) -> None:
    """A value with its interval, in the colour and shape of its family."""
    colour = looks.colour(family)
    if interval:
        ax.plot(interval, [y, y], color=colour, lw=1.4, solid_capstyle="butt")
    ax.scatter(value, y, s=24, color=colour, marker=looks.shape(family), zorder=3, gid=gid)


def _name_rows(ax: Axes, rows: Sized, names: Sequence[str]) -> None:
    """Names the rows from the top down; without names only makes room for them."""
    ax.set_yticks([-y for y in range(len(rows))], names)
    ax.tick_params(axis="y", labelcolor=INK)
    ax.set_ylim(-len(rows) + 0.4, 0.6)


def _family(study: Study, block: Block, method: str) -> str:
    return study.all_cells[block.cells[method][0]].family


def _settings(block: Block) -> str:
    return many(len(block.settings), "setting")


def _left_out(drawn: Sized, of: Sized) -> str:
    return f" The best {len(drawn)} of {len(of)} methods." if len(drawn) < len(of) else ""
