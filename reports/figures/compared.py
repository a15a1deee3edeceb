"""The figures of comparisons: differences from the reference, scores by trials, and scores by learning rate.

The score of a method without adapter is a level, drawn as a line. Scores by trials and by rate are
drawn for tuned methods only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from matplotlib.transforms import blended_transform_factory

from tensorbench.records.metrics import direction
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.answers import (
    between,
    heading,
    in_words,
    score_name,
    setting_name,
    settings_counted,
    trials_of_tuning,
)
from tensorbench.reports.blocks import Block, Comparison, Performance
from tensorbench.reports.drawing import (
    INK,
    MUTED,
    RULE,
    SERIES,
    Drawn,
    Looks,
    Tips,
    legend_below,
    log_axis,
    panels,
)
from tensorbench.reports.inference.intervals import Bounds
from tensorbench.reports.inference.rates import LEAST_SMOOTHED, smoothed, window
from tensorbench.reports.inference.studies import FAILED, score_after
from tensorbench.reports.inference.tasks import TaskTests
from tensorbench.reports.results import TaskAndBackbone
from tensorbench.reports.tables import ANCHOR
from tensorbench.reports.units import many, minus

#: The panels of learning rates extend at most this many points below zero.
DEPTH = 15
#: An outlier is farther from zero than this many times the threshold and than this many times the median
#: distance from zero. Outliers are marked only at the edge.
FAR = 6
#: The dash patterns of the lines of methods without adapter, in order.
DASHES = (":", "--", "-.")


def compared(analysis: Analysis, looks: Looks) -> Iterator[Drawn]:
    """Yields the figures of all blocks."""
    for number, block in enumerate(analysis.blocks):
        colours = colours_of(block)
        if block.compared:
            title = f"{score_name(block).capitalize()}, {heading(block)}"
            yield differences(block, f"differences-{number}", title, looks)
            if len(block.settings) > 1:
                yield _by_task(block, number, looks, colours)
        if block.over_tasks and block.over_tasks.critical:
            yield _mean_ranks(block, block.over_tasks, number, looks, colours)
        if block.tuned:
            yield _curves(block, number, looks, colours)
            if block.rated:
                yield _rates(analysis, block, number)


def colours_of(block: Block) -> dict[str, str]:
    """The colour of each method. It is not that of the family, which several methods may share."""
    return {entrant.method: SERIES[i % len(SERIES)] for i, entrant in enumerate(block.entrants)}


def _lines_of_levels(block: Block) -> list[Line2D]:
    """The legend's lines for the methods without adapter."""
    return [
        Line2D([], [], color=MUTED, ls=DASHES[number % len(DASHES)], lw=1.1, label=level.method)
        for number, level in enumerate(block.levels)
    ]


# --- differences: forest plots with a row for each method ---


@dataclass(frozen=True)
class ForestRow:
    """A row of a forest plot: a value with its interval in units of the axis, its look and its tooltip."""

    name: str
    value: float
    interval: Bounds | None
    colour: str
    shape: str
    tip: str


def _height(rows: int) -> float:
    """The height in inches of a forest with this many rows."""
    return 0.9 + 0.23 * rows


def differences(block: Block, name: str, title: str, looks: Looks) -> Drawn:
    """The differences from the reference over all settings, with methods without adapter as lines."""
    unit, tips = block.unit, Tips()
    figure, (ax,) = panels(1, height=0.4 + _height(len(block.compared)))
    limits = _forest_of(ax, block, looks, colours_of(block), None, tips)
    # The name of each level is above its line. Neighbouring names alternate in height.
    lines = [line for line in ax.lines if not str(line.get_label()).startswith("_")]
    values = sorted((float(np.asarray(line.get_xdata())[0]), str(line.get_label())) for line in lines)
    for place, (value, level_name) in enumerate(values):
        at = (value - limits[0]) / (limits[1] - limits[0])
        ax.annotate(
            level_name,
            (value, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2 + 9 * (place % 2)),
            textcoords="offset points",
            ha="left" if at < 0.15 else "right" if at > 0.85 else "center",
            fontsize=7.5,
            color=MUTED,
            annotation_clip=False,
        )
    outside = [
        f"{level.method} ({minus(unit.difference(level.difference))})"
        for level in block.levels
        if level.difference is not None and not limits[0] <= unit.factor * level.difference <= limits[1]
    ]
    averaged = f"Mean over {settings_counted(block)} of the " if len(block.settings) > 1 else "The "
    caption = (
        f"{averaged}{score_name(block)}, as a difference from {block.against}, with simultaneous 95% "
        f"intervals. The shaded band is the range of equivalence: ±{unit.size(block.threshold)}."
        + " Lines are methods without adapter." * bool(lines)
        + f" Outside the frame: {', '.join(outside)}." * bool(outside)
        + bounds_explained(e.differences[block.k] for e in block.compared)
    )
    alternative = "; ".join(
        f"{e.method} {unit.difference(e.differences[block.k].effect.difference)}" for e in block.compared
    )
    return Drawn(name, title, caption, alternative, figure, tips)


def bounds_explained(comparisons: Iterable[Comparison]) -> str:
    """The sentences on the bounds that are marked, each after a space. Empty if there are none."""
    ends = {"≥": "marks a lower bound: the method's", "≤": "marks an upper bound: the reference's"}
    marks = {comparison.bound for comparison in comparisons}
    return "".join(
        f" ({mark}) {bound} best rates lie at an edge of its window."
        for mark, bound in ends.items()
        if mark in marks
    )


def _mean_ranks(
    block: Block, tests: TaskTests, number: int, looks: Looks, colours: Mapping[str, str]
) -> Drawn:
    """The mean ranks of methods over tasks, with bars as wide as the critical difference."""
    figure, (ax,) = panels(1, height=0.3 + _height(len(tests.ranks)))
    half, tips = (tests.critical or 0.0) / 2, Tips()
    order = sorted(tests.ranks, key=tests.ranks.__getitem__, reverse=True)
    families = {entrant.method: entrant.family for entrant in block.entrants}
    for place, method in enumerate(order):
        rank, colour = tests.ranks[method], colours.get(method, INK)
        ax.plot([rank - half, rank + half], [place, place], color=colour, lw=1.4)
        dot = ax.scatter([rank], [place], color=colour, marker=looks.shape(families[method]), s=28, zorder=3)
        tips.put(dot, [f"{method}: mean rank {rank:.2f}"])
    ax.set_yticks(range(len(order)), order)
    ax.set_xlabel("mean rank over tasks (1 is the best)")
    return Drawn(
        f"tasks-{number}",
        f"Mean ranks over {many(tests.tasks, 'task')}, {heading(block)}",
        f"Bars are as wide as the critical difference, {tests.critical:.2f} (Nemenyi's test, all pairs at "
        "95%): methods whose bars do not overlap differ over tasks as the sample.",
        "; ".join(f"{method} {tests.ranks[method]:.2f}" for method in reversed(order)),
        figure,
        tips,
    )


def _by_task(block: Block, number: int, looks: Looks, colours: Mapping[str, str]) -> Drawn:
    figure, axes = panels(len(block.settings), height=0.3 + _height(len(block.compared)))
    tips, texts = Tips(), []
    for ax, setting in zip(axes, block.settings, strict=True):
        _forest_of(ax, block, looks, colours, setting, tips)
        ax.set_title(setting_name(block.settings, setting))
        values = [
            f"{e.method} {block.unit.difference(e.differences[block.k].on[setting].effect.difference)}"
            for e in block.compared
        ]
        texts.append(f"{setting_name(block.settings, setting)}: {', '.join(values)}")
    if block.levels:
        legend_below(figure, _lines_of_levels(block), 3)
    return Drawn(
        f"differences-by-task-{number}",
        f"Task by task, {heading(block)}",
        "The same on each task. These intervals are simultaneous over methods and tasks, so they are wider. "
        "Lines outside the frame are left out."
        + bounds_explained(
            on for entrant in block.compared for on in entrant.differences[block.k].on.values()
        ),
        "; ".join(texts),
        figure,
        tips,
    )


def _forest_of(
    ax: Axes,
    block: Block,
    looks: Looks,
    colours: Mapping[str, str],
    setting: TaskAndBackbone | None,
    tips: Tips,
) -> Bounds:
    """Draws the differences from the reference on a setting or, if it is None, over all settings.

    Methods without adapter are vertical lines. Returns the limits of the axis.
    """
    unit, rows = block.unit, []
    for entrant in block.compared:
        comparison = entrant.differences[block.k]
        if setting is not None:
            comparison = comparison.on[setting]
        value, interval = comparison.effect.difference, comparison.interval
        rows.append(
            ForestRow(
                entrant.method + f" ({comparison.bound})" * bool(comparison.bound),
                unit.factor * value,
                interval and (unit.factor * interval[0], unit.factor * interval[1]),
                colours[entrant.method],
                looks.shape(entrant.family),
                f"{entrant.method}\n{unit.difference(value)} {unit.points} "
                f"({between(comparison, unit)})\n"
                f"{in_words(comparison.verdict, unit.size(block.threshold))}",
            )
        )
    differences = [e.differences.get(setting) if setting else e.difference for e in block.levels]
    levels = {i: unit.factor * value for i, value in enumerate(differences) if value is not None}
    threshold = unit.factor * block.threshold
    limits = reach(rows, threshold, levels.values())
    # The band of differences that are too small to matter, and the line at zero.
    ax.axvspan(-threshold, threshold, color=RULE, alpha=0.6, lw=0)
    ax.axvline(0, color=MUTED, lw=0.8)
    forest(ax, rows, limits, tips)
    for number, value in levels.items():
        if limits[0] <= value <= limits[1]:
            line = ax.axvline(value, color=MUTED, lw=1.1, ls=DASHES[number % len(DASHES)], zorder=1)
            line.set_label(block.levels[number].method)
    side = "above" if direction(block.metric) > 0 else "below"
    ax.set_xlabel(f"{unit.points} {side} {block.against}")
    return limits


def forest(ax: Axes, rows: Sequence[ForestRow], limits: Bounds, tips: Tips) -> None:
    """Draws the rows from top to bottom.

    If an interval continues outside the limits, an arrowhead marks that end. A value outside the limits is
    written as a number.
    """
    low, high = limits
    beside = blended_transform_factory(ax.transAxes, ax.transData)
    for place, row in enumerate(rows):
        y = -place
        ends = row.interval or (row.value, row.value)
        start, end = (min(max(bound, low), high) for bound in ends)
        if end > start:
            tips.put(ax.hlines(y, start, end, color=row.colour, lw=1.5), [row.tip])
        for is_beyond, edge, arrow in ((ends[0] < low, low, "<"), (ends[1] > high, high, ">")):
            if is_beyond:
                ax.scatter(edge, y, s=20, marker=arrow, color=row.colour, lw=0, clip_on=False, zorder=4)
        if low <= row.value <= high:
            dot = ax.scatter(row.value, y, s=26, color=row.colour, marker=row.shape, lw=0, zorder=3)
            tips.put(dot, [row.tip])
        else:
            at_left = row.value < low
            ax.text(
                0.02 if at_left else 0.98,
                y,
                f"{row.value:+.3g}".replace("-", "−"),
                transform=beside,
                ha="left" if at_left else "right",
                va="bottom",
                fontsize=7,
                color=row.colour,
            )
    ax.set_xlim(low, high)
    ax.set_yticks([-place for place in range(len(rows))], [row.name for row in rows])
    ax.set_ylim(-len(rows) + 0.4, 0.6)
    ax.tick_params(axis="y", labelcolor=INK)
    ax.grid(visible=False, axis="y")


def reach(rows: Sequence[ForestRow], threshold: float, levels: Iterable[float] = ()) -> Bounds:
    """Limits of the axis that include zero, the equivalence band, most intervals and all values but outliers.

    `levels` are the positions of further lines. A level is included unless that would widen the axis by more
    than half.
    """
    sizes = np.abs([row.value for row in rows])
    farthest = FAR * max(float(np.median(sizes)), threshold)
    within = [row for row in rows if abs(row.value) <= farthest]
    # Most intervals fit, but a very wide one must not squeeze everything else.
    largest = max((abs(row.value) for row in within), default=0.0)
    bounds = [abs(bound) for row in within for bound in row.interval or ()]
    usual = min(float(np.percentile(bounds, 90)), 4 * largest) if bounds else 0.0
    if bounds and max(bounds) <= 1.25 * usual:
        usual = max(bounds)
    widest = max(2.2 * largest, 2.5 * threshold, usual)
    ends = [-1.5 * threshold, 1.5 * threshold]
    for row in within:
        ends += [min(max(bound, -widest), widest) for bound in (row.value, *(row.interval or ()))]
    low, high = min(ends), max(ends)
    beyond = (high - low) / 2
    ends += [level for level in levels if low - beyond <= level <= high + beyond]
    low, high = min(ends), max(ends)
    pad = 0.04 * (high - low)
    return low - pad, high + pad


# --- curves over the number of trials ---


def _curves(block: Block, number: int, looks: Looks, colours: Mapping[str, str]) -> Drawn:
    figure, axes = panels(len(block.settings), height=2.5)
    unit, tips = block.unit, Tips()
    for ax, setting in zip(axes, block.settings, strict=True):
        for entrant in block.entrants:
            scores = dict(sorted(entrant.on[setting].scores.items()))
            values = [unit.factor * score.value for score in scores.values()]
            colour, shape = colours[entrant.method], looks.shape(entrant.family)
            ax.plot([*scores], values, color=colour, lw=2.0 if entrant.method == block.against else 1.1)
            marks = ax.scatter([*scores], values, s=14, color=colour, marker=shape, lw=0, zorder=3)
            texts = []
            for k, score in scores.items():
                shown = unit.estimate(score.value, score.interval)
                texts.append(f"{entrant.method}\n{shown} after {trials_of_tuning(k)}")
            tips.put(marks, texts)
        low, high = ax.get_ylim()
        near = 0.5 * (high - low)
        for i, level in enumerate(block.levels):
            own = level.scores.get(setting)
            if own is not None and low - near <= unit.factor * own <= high + near:
                ax.axhline(unit.factor * own, color=MUTED, lw=1.1, ls=DASHES[i % len(DASHES)], zorder=1)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator(list(block.ks)))
        ax.xaxis.set_major_formatter(FixedFormatter(list(map(str, block.ks))))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_title(setting_name(block.settings, setting))
        ax.set_xlabel("trials of tuning")
        ax.set_ylabel(unit.named(block.metric))
    lines = [
        Line2D([], [], color=colours[e.method], marker=looks.shape(e.family), ms=4, label=e.method)
        for e in block.entrants
    ]
    handles = [*lines, *_lines_of_levels(block)]
    legend_below(figure, handles, 4)
    return Drawn(
        f"curves-{number}",
        f"Score by trials of tuning, {heading(block)}",
        "The expected test score of the trial with the lowest validation loss out of k trials. "
        + "Methods without adapter are lines, if they are near. " * bool(block.levels)
        + "Intervals are in tables/scores.csv.",
        "; ".join(
            f"{e.method} on {setting.task}: "
            + ", ".join(f"{unit.score(score.value)} after {k}" for k, score in sorted(own.scores.items()))
            for e in block.entrants
            for setting, own in e.on.items()
        ),
        figure,
        tips,
    )


# --- scores against rates ---


def _rates(analysis: Analysis, block: Block, number: int) -> Drawn:
    """Scores against learning rates: a panel per method, a dot for each trial of its complete studies.

    Crosses are failed trials. Scores are relative to the reference's, or without one to the best method's.
    `number` is the block's number.
    """
    figure, axes = panels(len(block.entrants), columns=3, height=2.1)
    # Each panel's zero is the score of the reference on the setting or, without one, of the best method.
    sign = direction(block.metric)
    zeros = {
        setting: score_after(block.reference.on[setting].studies, block.k)
        if block.reference
        else max(sign * entrant.on[setting].scores[block.k].value for entrant in block.entrants)
        for setting in block.settings
    }
    bottom = min(
        max(float(each.scores[~each.failed].min(initial=each.best)) - zeros[setting], -DEPTH * each.point)
        for entrant in block.entrants
        for setting, each in zip(entrant.on, entrant.studies, strict=True)
    )
    tips, smooth = Tips(), False
    for ax, entrant in zip(axes, block.entrants, strict=True):
        ax.axhline(0, color=MUTED, lw=0.7)
        for place, (setting, trials) in enumerate(entrant.on.items()):
            colour = SERIES[place % len(SERIES)]
            smooth |= _draw_trials(ax, analysis, block, trials, colour, zeros[setting], bottom, tips)
        log_axis(ax, lambda rate, _: f"{rate:g}")
        ax.set_xlabel("learning rate")
        ax.set_title(entrant.method)
    limits = [ax.get_ylim() for ax in axes]
    for ax in axes:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    for ax in axes[::3]:
        side = "from" if direction(block.metric) > 0 else "below"
        ax.set_ylabel(f"{block.unit.points} {side} {block.against or 'the best'}")
    handles = [
        Line2D([], [], color=SERIES[i % len(SERIES)], marker="o", lw=0.9, ms=4, label=name)
        for i, name in enumerate(setting_name(block.settings, setting) for setting in block.settings)
    ]
    handles.append(Line2D([], [], color=MUTED, marker="x", ls="none", ms=5, label="failed"))
    legend_below(figure, handles, 5)
    zero = f"{block.against}'s score" if block.reference else "the best score"
    return Drawn(
        f"rates-{number}",
        f"Score against learning rate, {heading(block)}",
        f"A dot is a trial. Zero is {zero} after {trials_of_tuning(block.k)} on its task. "
        + f"Lines are scores smoothed by LOESS, where {LEAST_SMOOTHED} or more trials succeeded. " * smooth
        + f"Crosses are failed trials: diverged, or {FAILED} points or more below the trial "
        "that validation chooses. Those further down are at the bottom. On the page each dot leads to "
        "its run.",
        "; ".join(
            f"{e.method}: {e.sensitivity.failures} of {e.sensitivity.trials} trials failed"
            for e in block.entrants
            if e.sensitivity
        ),
        figure,
        tips,
    )


def _draw_trials(
    ax: Axes,
    analysis: Analysis,
    block: Block,
    own: Performance,
    colour: str,
    zero: float,
    bottom: float,
    tips: Tips,
) -> bool:
    """Draws a method's trials on one setting. Each dot links to the trial's line in the table of trials.

    Returns whether enough trials succeeded for a smoothed curve.
    """
    cell, studies, factor = own.cell, own.studies, block.unit.factor
    sign, task = direction(cell.metric), cell.task
    complete = [seed for seed in cell.trials if seed.study in studies.numbers]
    for failed in (False, True):
        trials = [seed for seed in complete if analysis.failed(seed) is failed]
        gains = [bottom if seed.score is None else max(bottom, sign * seed.score - zero) for seed in trials]
        dots = ax.scatter(
            [seed.lr or 0.0 for seed in trials],
            [factor * gain for gain in gains],
            s=18 if failed else 9,
            marker="x" if failed else "o",
            color=colour,
            alpha=1.0 if failed else 0.75,
            linewidths=1.2 if failed else 0,
            clip_on=False,
        )
        scores = [s.failure if s.score is None else block.unit.score(s.score) for s in trials]
        texts = [
            f"{seed.method} on {task}: {score}{' (failed)' * failed}\n"
            f"study {seed.study:.0f}, point {seed.point:.0f}, rate {seed.lr:.3g}\ntrial {seed.trial_id}"
            for seed, score in zip(trials, scores, strict=True)
        ]
        tips.put(dots, texts, [f"#{ANCHOR}{seed.trial_id}" for seed in trials])
    if (~studies.failed).sum() < LEAST_SMOOTHED:
        return False
    assert cell.studies is not None
    offsets = window(studies)
    curve = np.maximum(smoothed(studies, offsets) - zero, bottom)
    ax.plot(cell.studies.centre * 10**offsets, factor * curve, color=colour, lw=0.9, alpha=0.7)
    return True
