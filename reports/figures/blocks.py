"""The figures of one block: differences from the reference, and the ranks of methods by score."""

from __future__ import annotations

from collections.abc import Sized
from typing import TypedDict

from matplotlib.ticker import MaxNLocator

from tensorbench.metrics import direction
from tensorbench.reports.analysis import Block
from tensorbench.reports.comparisons import AgainstReference
from tensorbench.reports.drawing import MUTED, Drawn, Looks, Tips, panels
from tensorbench.reports.figures.forest import MOST_ROWS, ForestRow, band, forest, height, reach
from tensorbench.reports.headline import above_reference
from tensorbench.reports.study import Study, TaskAndBackbone
from tensorbench.reports.words import many, no_interval

#: The largest number of seed pairs per setting in a tooltip.
MOST_PAIRS = 10


class Scope(TypedDict):
    """The fields of `Drawn` that say which block a figure shows."""

    budget: str
    settings: tuple[TaskAndBackbone, ...]


def differences(study: Study, block: Block, number: int, looks: Looks) -> Drawn | None:
    """The figure of differences from the reference with their intervals, best at the top.

    None if fewer than two methods are compared with a reference.
    """
    shown = sorted(block.comparisons, key=lambda c: -c.effect.difference)[:MOST_ROWS]
    if len(shown) < 2 or block.reference is None:
        return None
    unit, reference = block.unit, block.reference.method
    threshold, tips = unit.factor * block.threshold, Tips()
    rows = [
        ForestRow(
            c.method,
            unit.factor * c.effect.difference,
            c.interval and (unit.factor * c.interval[0], unit.factor * c.interval[1]),
            looks.colour(c.family),
            looks.shape(c.family),
            _pairs(study, block, c),
        )
        for c in shown
    ]
    head = above_reference(study, block)
    level = None if head is None else unit.factor * head
    limits = reach(rows, threshold, () if level is None else (level,))
    figure, (ax,) = panels(1, height=height(len(rows)))
    band(ax, threshold)
    forest(ax, rows, limits, tips)
    if level is not None:
        ax.axvline(level, color=MUTED, lw=0.9, ls=":", zorder=1)
    side = "above" if direction(block.metric) > 0 else "below"
    ax.set_xlabel(f"{unit.points} {side} {reference}")
    caption = (
        f"Mean difference from {reference} over {_settings(block)}, with intervals that hold "
        f"simultaneously with {block.held}. Arrowheads continue outside the frame. The band is practically "
        f"equivalent: ±{unit.size(block.threshold)}."
        + (f" The dotted line is the converged head: {unit.difference(head)}." if head is not None else "")
        + _left_out(shown, block.comparisons)
    )
    alternative = "; ".join(f"{c.method} {unit.difference(c.effect.difference)}" for c in shown)
    title = f"Difference from {reference}, {block.title}"
    return Drawn(f"differences-{number}", title, caption, alternative, figure, tips, **scope_of(block))


def _pairs(study: Study, block: Block, compared: AgainstReference) -> str:
    """The tooltip of a difference: its interval, its verdict, and the difference of each seed pair."""
    unit, bounds = block.unit, no_interval(compared.effect.fewest)
    if compared.interval:
        bounds = " to ".join(unit.difference(bound) for bound in compared.interval)
    difference = f"{unit.difference(compared.effect.difference)} {unit.points} ({bounds})"
    lines = [compared.method, difference, str(compared.verdict)]
    for setting, *cells in zip(compared.settings, compared.cells, compared.reference_cells, strict=True):
        seeds, (own, other) = study.gains(cells)
        pairs = [
            f"seed {seed} {unit.difference(float(gain))}"
            for seed, gain in zip(seeds, own - other, strict=True)
        ]
        more = ", …" * (len(pairs) > MOST_PAIRS)
        lines.append(f"{setting.task}: {', '.join(pairs[:MOST_PAIRS])}{more}")
    return "\n".join(lines)


def ranks(study: Study, block: Block, number: int, looks: Looks) -> Drawn | None:
    """The figure of the methods' ranks by score, with intervals and groups of indistinguishable methods.

    None for fewer than two methods.
    """
    if block.ranking is None or len(block.methods) < 2:
        return None
    ranking, letters, tips = block.ranking.ranks, block.ranking.letters or (), Tips()
    methods = block.methods[:MOST_ROWS]
    rows = []
    for place, method in enumerate(methods):
        family = study.all_cells[block.cells[method][0]].family
        interval, words = None, ""
        if ranking.low is not None and ranking.high is not None:
            interval = float(ranking.low[place]), float(ranking.high[place])
            words = f"\nrank {interval[0]:.0f} to {interval[1]:.0f}"
        tip = f"{method}\nrank {ranking.place[place]:.0f}, mean of ranks {ranking.mean[place]:.2f}{words}"
        look = looks.colour(family), looks.shape(family)
        rows.append(ForestRow(method, float(ranking.place[place]), interval, *look, tip))
    figure, (ax,) = panels(1, height=height(len(rows)))
    forest(ax, rows, (0.7, len(block.methods) + 0.3), tips)
    for place, letter in enumerate(letters[: len(rows)]):
        ax.annotate(
            letter,
            (1.02, -place),
            xycoords=("axes fraction", "data"),
            va="center",
            color=MUTED,
            annotation_clip=False,
        )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("rank (1 is best)")
    caption = f"Rank by the mean score over {_settings(block)}, in order of the mean of each setting's ranks."
    if ranking.low is not None:
        caption += (
            f" Intervals are the ranks that pairwise differences leave, simultaneously with {block.held}."
        )
    if letters:
        caption += " Methods that share a letter at the right are statistically indistinguishable."
    caption += _left_out(methods, block.methods)
    alternative = "; ".join(f"{row.name} {row.value:.0f}" for row in rows)
    return Drawn(
        f"ranks-{number}", f"Ranks, {block.heading}", caption, alternative, figure, tips, **scope_of(block)
    )


def scope_of(block: Block) -> Scope:
    return {"budget": block.budget, "settings": block.settings}


def _settings(block: Block) -> str:
    return many(len(block.settings), "setting")


def _left_out(shown: Sized, methods: Sized) -> str:
    return f" The best {len(shown)} of {len(methods)} methods." if len(shown) < len(methods) else ""
