"""The figures of comparisons: differences from the reference, scores by trials, and scores by learning rate.

The score of a method without adapter is a level, drawn as a line. Scores by trials and by rate are of tuned
methods alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import starmap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
)

from tensorbench.metrics import direction
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
from tensorbench.reports.blocks import Block, Entrant, Estimate, Level
from tensorbench.reports.drawing import MUTED, SERIES, Drawn, Looks, Tips, panels
from tensorbench.reports.figures.forest import DASHES, ForestRow, band, forest, height, reach
from tensorbench.reports.inference.intervals import Bounds
from tensorbench.reports.inference.studies import FAILED, LEAST_SMOOTHED, smoothed, window
from tensorbench.reports.results import Seed, TaskAndBackbone
from tensorbench.reports.units import Unit, minus

#: The prefix of the HTML anchors of trials in their table. The dot of a trial links to its anchor.
ANCHOR = "trial-"
#: The panels of learning rates extend at most this many points below zero.
DEPTH = 15

#: The colour of each method, by name.
Colours = Mapping[str, str]


def compared(analysis: Analysis, looks: Looks) -> list[Drawn]:
    """The figures of all blocks."""
    drawn: list[Drawn] = []
    for number, block in enumerate(analysis.blocks):
        # Several methods may share a family.
        colours = {entrant.method: SERIES[i % len(SERIES)] for i, entrant in enumerate(block.entrants)}
        if block.compared:
            drawn.append(_differences(block, number, looks, colours))
            if len(block.settings) > 1:
                drawn.append(_by_task(block, number, looks, colours))
        if block.tuned:
            drawn += [_curves(block, number, looks, colours), _rates(analysis, block, number)]
    return drawn


# --- differences ---


def _differences(block: Block, number: int, looks: Looks, colours: Colours) -> Drawn:
    rows = list(_rows(block, looks, colours))
    levels = _inside(block, [level.difference for level in block.levels])
    tips, limits = Tips(), reach(rows, block.unit.factor * block.threshold, levels.values())
    figure, (ax,) = panels(1, height=0.4 + height(len(rows)))
    _draw_forest(ax, block, rows, limits, levels, tips)
    _label_lines(ax)
    outside = [
        f"{level.method} ({minus(block.unit.difference(level.difference))})"
        for level in block.levels
        if level.difference is not None and not limits[0] <= block.unit.factor * level.difference <= limits[1]
    ]
    caption = (
        f"{_averaged(block)}{score_name(block)}, as a difference from {block.against}, with "
        "simultaneous 95% intervals. The shaded band is practically "
        f"equivalent: ±{block.unit.size(block.threshold)}. Lines are methods "
        "without adapter." + f" Outside the frame: {', '.join(outside)}." * bool(outside)
    )
    alternative = "; ".join(
        f"{e.method} {block.unit.difference(e.differences[block.k].effect.difference)}"
        for e in block.compared
    )
    title = f"{score_name(block).capitalize()}, {heading(block)}"
    return Drawn(f"differences-{number}", title, caption, alternative, figure, tips)


def _averaged(block: Block) -> str:
    return f"Mean over {settings_counted(block)} of the " if len(block.settings) > 1 else "The "


def _by_task(block: Block, number: int, looks: Looks, colours: Colours) -> Drawn:
    figure, axes = panels(len(block.settings), height=0.3 + height(len(block.compared)))
    tips, texts = Tips(), []
    for place, (ax, setting) in enumerate(zip(axes, block.settings, strict=True)):
        rows = list(_rows(block, looks, colours, place))
        levels = _inside(block, [level.differences[place] for level in block.levels])
        limits = reach(rows, block.unit.factor * block.threshold, levels.values())
        _draw_forest(ax, block, rows, limits, levels, tips)
        ax.set_title(setting_name(block, setting))
        values = [
            f"{entrant.method} "
            f"{block.unit.difference(entrant.differences[block.k].effect.parts[place].difference)}"
            for entrant in block.compared
        ]
        texts.append(f"{setting_name(block, setting)}: {', '.join(values)}")
    if block.levels:
        handles = list(starmap(_level_line, enumerate(block.levels)))
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return Drawn(
        f"differences-by-task-{number}",
        f"Task by task, {heading(block)}",
        "The same on each task. These intervals are simultaneous over methods and tasks, so they are wider. "
        "Lines outside the frame are left out.",
        "; ".join(texts),
        figure,
        tips,
    )


def _rows(block: Block, looks: Looks, colours: Colours, place: int | None = None) -> Iterator[ForestRow]:
    """Yields the differences from the reference over all tasks, or on the task at index `place`."""
    unit = block.unit
    for entrant in block.compared:
        compared = entrant.differences[block.k]
        value, interval, verdict = compared.effect.difference, compared.interval, compared.verdict
        if place is not None:
            value, interval = compared.effect.parts[place].difference, compared.intervals[place]
            verdict = compared.verdicts[place]
        difference = f"{unit.difference(value)} {unit.points} ({between(compared, unit, place)})"
        words = in_words(verdict, unit.size(block.threshold))
        yield ForestRow(
            entrant.method,
            unit.factor * value,
            interval and (unit.factor * interval[0], unit.factor * interval[1]),
            colours[entrant.method],
            looks.shape(entrant.family),
            f"{entrant.method}\n{difference}\n{words}",
        )


def _inside(block: Block, differences: Sequence[float | None]) -> dict[int, float]:
    """The known differences by index, in units of the axis."""
    return {
        number: block.unit.factor * value for number, value in enumerate(differences) if value is not None
    }


def _draw_forest(
    ax: Axes,
    block: Block,
    rows: Sequence[ForestRow],
    limits: Bounds,
    levels: Mapping[int, float],
    tips: Tips,
) -> None:
    """Draws differences as a forest plot, and `levels` as lines across it."""
    band(ax, block.unit.factor * block.threshold)
    forest(ax, rows, limits, tips)
    for number, value in levels.items():
        if limits[0] <= value <= limits[1]:
            line = ax.axvline(value, color=MUTED, lw=1.1, ls=DASHES[number % len(DASHES)], zorder=1)
            line.set_label(block.levels[number].method)
    side = "above" if direction(block.metric) > 0 else "below"
    ax.set_xlabel(f"{block.unit.points} {side} {block.against}")


def _label_lines(ax: Axes) -> None:
    """Writes the name of each level above its line. Neighbouring names alternate in height."""
    low, high = ax.get_xlim()
    lines = [line for line in ax.lines if not str(line.get_label()).startswith("_")]
    values = sorted((float(np.asarray(line.get_xdata())[0]), str(line.get_label())) for line in lines)
    for number, (value, name) in enumerate(values):
        at = (value - low) / (high - low)
        ax.annotate(
            name,
            (value, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2 + 9 * (number % 2)),
            textcoords="offset points",
            ha="left" if at < 0.15 else "right" if at > 0.85 else "center",
            fontsize=7.5,
            color=MUTED,
            annotation_clip=False,
        )


def _level_line(number: int, level: Level) -> Line2D:
    return Line2D([], [], color=MUTED, ls=DASHES[number % len(DASHES)], lw=1.1, label=level.method)


# --- curves over the number of trials ---


def _curves(block: Block, number: int, looks: Looks, colours: Colours) -> Drawn:
    figure, axes = panels(len(block.settings), height=2.5)
    unit, tips = block.unit, Tips()
    for place, (ax, setting) in enumerate(zip(axes, block.settings, strict=True)):
        for entrant in block.entrants:
            ks = sorted(entrant.scores)
            scores = [entrant.scores[k][place] for k in ks]
            values = [unit.factor * score.value for score in scores]
            width = 2.0 if entrant.method == block.against else 1.1
            ax.plot(ks, values, color=colours[entrant.method], lw=width)
            marks = ax.scatter(
                ks,
                values,
                s=14,
                color=colours[entrant.method],
                marker=looks.shape(entrant.family),
                lw=0,
                zorder=3,
            )
            tips.put(
                marks, [_score_tip(entrant, k, score, unit) for k, score in zip(ks, scores, strict=True)]
            )
        low, high = ax.get_ylim()
        near = 0.5 * (high - low)
        for i, level in enumerate(block.levels):
            score = level.scores[place]
            if score is not None and low - near <= unit.factor * score <= high + near:
                ax.axhline(unit.factor * score, color=MUTED, lw=1.1, ls=DASHES[i % len(DASHES)], zorder=1)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator(list(block.ks)))
        ax.xaxis.set_major_formatter(FixedFormatter(list(map(str, block.ks))))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_title(setting_name(block, setting))
        ax.set_xlabel("trials of tuning")
        ax.set_ylabel(f"{block.metric}" + (f", {unit.mark}" if unit.mark else ""))
    lines = [
        Line2D([], [], color=colours[e.method], marker=looks.shape(e.family), ms=4, label=e.method)
        for e in block.entrants
    ]
    lines += starmap(_level_line, enumerate(block.levels))
    figure.legend(handles=lines, loc="outside lower center", ncols=4)
    return Drawn(
        f"curves-{number}",
        f"Score by trials of tuning, {heading(block)}",
        "The expected test score of the trial with the lowest validation loss out of k trials. Methods "
        "without adapter are lines, if they are near. Intervals are in tables/scores.csv.",
        "; ".join(
            f"{e.method} on {setting.task}: "
            + ", ".join(f"{unit.score(e.scores[k][place].value)} after {k}" for k in sorted(e.scores))
            for e in block.entrants
            for place, setting in enumerate(block.settings)
        ),
        figure,
        tips,
    )


def _score_tip(entrant: Entrant, k: int, score: Estimate, unit: Unit) -> str:
    bounds = (
        f" ({unit.score(score.interval[0])} to {unit.score(score.interval[1])})" if score.interval else ""
    )
    return f"{entrant.method}\n{unit.score(score.value)}{bounds} after {trials_of_tuning(k)}"


# --- scores against rates ---


def _rates(analysis: Analysis, block: Block, number: int) -> Drawn:
    """A panel per method, with a dot for each trial of its complete studies. Crosses are failed trials."""
    figure, axes = panels(len(block.entrants), columns=3, height=2.1)
    zeros, tips, smooth = _zeros(block), Tips(), False
    bottom = min(_lowest(entrant, zeros) for entrant in block.entrants)
    for ax, entrant in zip(axes, block.entrants, strict=True):
        ax.axhline(0, color=MUTED, lw=0.7)
        for place in range(len(block.settings)):
            smooth |= _draw_trials(ax, analysis, block, entrant, place, zeros[place], bottom, tips)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel("learning rate")
        ax.set_title(entrant.method)
    limits = [ax.get_ylim() for ax in axes]
    for ax in axes:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    for ax in axes[::3]:
        ax.set_ylabel(f"{block.unit.points} from {block.against or 'the best'}")
    handles = [
        Line2D(
            [],
            [],
            color=SERIES[i % len(SERIES)],
            marker="o",
            lw=0.9,
            ms=4,
            label=setting_name(block, setting),
        )
        for i, setting in enumerate(block.settings)
    ]
    handles.append(Line2D([], [], color=MUTED, marker="x", ls="none", ms=5, label="failed"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
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
    entrant: Entrant,
    place: int,
    zero: float,
    bottom: float,
    tips: Tips,
) -> bool:
    """Draws a method's trials on one setting. Each dot links to the trial's line in the table of trials.

    Returns whether enough trials succeeded for a smoothed curve.
    """
    colour, factor = SERIES[place % len(SERIES)], block.unit.factor
    cell, studies = analysis.results.all_cells[entrant.cells[place]], entrant.studies[place]
    sign, numbers = direction(cell.metric), set(entrant.studies[place].numbers)
    complete = [seed for seed in analysis.results.of_cell(cell.number) if seed.study in numbers]
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
        texts = [_trial_tip(block, block.settings[place], seed, failed=failed) for seed in trials]
        tips.put(dots, texts, [f"#{ANCHOR}{seed.trial_id}" for seed in trials])
    if (~studies.failed).sum() < LEAST_SMOOTHED:
        return False
    assert cell.studies is not None
    offsets = window(studies)
    curve = np.maximum(smoothed(studies, offsets) - zero, bottom)
    ax.plot(cell.studies.centre * 10**offsets, factor * curve, color=colour, lw=0.9, alpha=0.7)
    return True


def _zeros(block: Block) -> list[float]:
    """The score that each setting's panel shows as zero: that of the reference after `k` trials.

    Without a reference, that of the best method.
    """
    sign, places = direction(block.metric), range(len(block.settings))
    own = [e for e in block.entrants if block.reference and e.cells == block.reference.cells]
    return [max(sign * e.scores[block.k][place].value for e in own or block.entrants) for place in places]


def _lowest(entrant: Entrant, zeros: Sequence[float]) -> float:
    """The lower limit that the panels of rates need for a method: its lowest score of trials without failure.

    If all trials failed, it is their mean score. Each score is relative to the zero of its setting, from
    `zeros` (see `_zeros`). The limit is at least -`DEPTH` points.
    """
    each = [
        max(float(studies.scores[~studies.failed].min(initial=studies.best)) - zero, -DEPTH * studies.point)
        for studies, zero in zip(entrant.studies, zeros, strict=True)
    ]
    return min(each)


def _trial_tip(block: Block, setting: TaskAndBackbone, seed: Seed, *, failed: bool) -> str:
    score = seed.failure if seed.score is None else block.unit.score(seed.score)
    return (
        f"{seed.method} on {setting.task}: {score}{' (failed)' * failed}\n"
        f"study {seed.study:.0f}, point {seed.point:.0f}, rate {seed.lr:.3g}\ntrial {seed.trial_id}"
    )
