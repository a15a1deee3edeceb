"""The figures of a study: differences after k trials of tuning, and curves over k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from bench.metrics import direction
from reports.drawing import INK, MUTED, RULE, SERIES, Drawn, Looks, panels, styled
from reports.figures.rates import rates
from reports.studies import Entrant, Level, StudyAnalysis, StudyBlock
from reports.study_words import heading, setting_name, trials_of_tuning
from reports.words import many

#: The lines of levels, in their order.
DASHES = (":", "--", "-.")

#: The colour of each method.
Colours = Mapping[str, str]


def draw(analysis: StudyAnalysis) -> list[Drawn]:
    """All figures of the page of a study."""
    looks = Looks(cell.family for cell in analysis.study.all_cells)
    drawn: list[Drawn] = []
    with styled():
        for number, block in enumerate(analysis.blocks):
            colours = _colours(block)
            if block.compared:
                drawn.append(_differences(block, number, looks, colours))
                if len(block.settings) > 1:
                    drawn.append(_by_task(block, number, looks, colours))
            drawn += [_curves(block, number, looks, colours), rates(analysis, block, number)]
    return drawn


def _colours(block: StudyBlock) -> Colours:
    """A colour for each method, as several may share a family."""
    return {entrant.method: SERIES[i % len(SERIES)] for i, entrant in enumerate(block.entrants)}


# --- differences ---


def _differences(block: StudyBlock, number: int, looks: Looks, colours: Colours) -> Drawn:
    """The score after k trials as a difference from the reference: the picture that the page opens with."""
    shown = list(reversed(block.compared))
    figure, (ax,) = panels(1, height=1.3 + 0.27 * len(shown), wide=True)
    factor = block.unit.factor
    values = [(entrant, entrant.differences[block.k]) for entrant in shown]
    levels = [(level, level.difference) for level in block.levels]
    _forest(ax, block, [(e, d.effect.difference, d.interval) for e, d in values], looks, colours)
    outside = _lines(ax, block, levels)
    _label_lines(ax, block)
    caption = (
        f"Mean over {many(len(block.settings), 'task')} of the score after {trials_of_tuning(block.k)}, as a "
        f"difference from {block.against}, with simultaneous 95% intervals. The shaded band is what "
        f"counts as practically equivalent: ±{factor * block.threshold:.3g} {block.unit.points}. "
        "Lines are methods without adapter." + f" Outside the frame: {', '.join(outside)}." * bool(outside)
    )
    alternative = "; ".join(
        f"{e.method} {block.unit.difference(d.effect.difference)}" for e, d in reversed(values)
    )
    title = f"Score after {trials_of_tuning(block.k)}, {heading(block)}"
    return Drawn(f"differences-{number}", title, caption, alternative, figure)


def _by_task(block: StudyBlock, number: int, looks: Looks, colours: Colours) -> Drawn:
    """The same on each task."""
    shown = list(reversed(block.compared))
    figure, axes = panels(len(block.settings), height=1.2 + 0.24 * len(shown))
    for place, (ax, setting) in enumerate(zip(axes, block.settings, strict=True)):
        on = [(e, e.differences[block.k]) for e in shown]
        _forest(
            ax,
            block,
            [(e, d.effect.parts[place].difference, d.intervals[place]) for e, d in on],
            looks,
            colours,
        )
        levels = [(level, level.differences[place]) for level in block.levels]
        _lines(ax, block, levels)
        ax.set_title(setting_name(block, setting))
    if block.levels:
        figure.legend(handles=_legend_lines(block), loc="outside lower center", ncols=3)
    return Drawn(
        f"differences-by-task-{number}",
        f"Task by task, {heading(block)}",
        "The same on each task. These intervals hold simultaneously for all methods on all tasks, so they "
        "are wider. Lines outside the frame are left out.",
        "; ".join(
            f"{setting.task}: "
            + ", ".join(
                f"{e.method} {block.unit.difference(e.differences[block.k].effect.parts[place].difference)}"
                for e in block.compared
            )
            for place, setting in enumerate(block.settings)
        ),
        figure,
    )


def _forest(
    ax: Axes,
    block: StudyBlock,
    values: Sequence[tuple[Entrant, float, tuple[float, float] | None]],
    looks: Looks,
    colours: Colours,
) -> None:
    """Draws differences with their intervals about the band of practical equivalence."""
    factor, threshold = block.unit.factor, block.unit.factor * block.threshold
    ax.axvspan(-threshold, threshold, color=RULE, alpha=0.6, lw=0)
    ax.axvline(0, color=MUTED, lw=0.8)
    ends = [-1.5 * threshold, 1.5 * threshold]
    for y, (entrant, value, interval) in enumerate(values):
        colour = colours[entrant.method]
        if interval:
            ax.plot([factor * bound for bound in interval], [y, y], color=colour, lw=1.6)
        ax.scatter(factor * value, y, s=28, color=colour, marker=looks.shape(entrant.family), zorder=3)
        ends += [factor * bound for bound in (value, *(interval or ()))]
    _frame(ax, ends)
    ax.set_yticks(range(len(values)), [entrant.method for entrant, _, _ in values])
    ax.set_ylim(-0.7, len(values) - 0.3)
    ax.tick_params(axis="y", labelcolor=INK)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel(_axis(block))


def _frame(ax: Axes, ends: Sequence[float]) -> None:
    """The limits of the abscissa, a little beyond these values."""
    low, high = min(ends), max(ends)
    ax.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))


def _lines(ax: Axes, block: StudyBlock, levels: Sequence[tuple[Level, float | None]]) -> list[str]:
    """Draws levels as lines; returns those that are too far outside the frame, as text.

    The frame grows for a level that is at most twice its width from zero.
    """
    low, high = ax.get_xlim()
    points = [(level, block.unit.factor * value) for level, value in levels if value is not None]
    inside = [value for _, value in points if abs(value) <= 2 * (high - low)]
    _frame(ax, [low, high, *inside])
    for level, value in points:
        if value in inside:
            ax.axvline(value, color=MUTED, lw=1.1, ls=_dash(block, level), zorder=1)
    return [f"{level.method} ({value:+.2f})" for level, value in points if value not in inside]


def _dash(block: StudyBlock, level: Level) -> str:
    return DASHES[block.levels.index(level) % len(DASHES)]


def _label_lines(ax: Axes, block: StudyBlock) -> None:
    """Writes the names of levels above their lines, neighbours at different heights."""
    low, high = ax.get_xlim()
    values = [
        (block.unit.factor * level.difference, level)
        for level in block.levels
        if level.difference is not None
    ]
    shown = sorted((pair for pair in values if low <= pair[0] <= high), key=lambda pair: pair[0])
    for number, (value, level) in enumerate(shown):
        at = (value - low) / (high - low)
        ax.annotate(
            level.method,
            (value, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2 + 9 * (number % 2)),
            textcoords="offset points",
            ha="left" if at < 0.15 else "right" if at > 0.85 else "center",
            fontsize=7.5,
            color=MUTED,
            annotation_clip=False,
        )


def _legend_lines(block: StudyBlock) -> list[Line2D]:
    return [
        Line2D([], [], color=MUTED, ls=_dash(block, level), lw=1.1, label=level.method)
        for level in block.levels
    ]


def _axis(block: StudyBlock) -> str:
    side = "above" if direction(block.metric) > 0 else "below"
    return f"{block.unit.points} {side} {block.against}"


# --- curves over the number of trials ---


def _curves(block: StudyBlock, number: int, looks: Looks, colours: Colours) -> Drawn:
    figure, axes = panels(len(block.settings), height=2.5)
    factor = block.unit.factor
    for place, (ax, setting) in enumerate(zip(axes, block.settings, strict=True)):
        for entrant in block.entrants:
            ks = sorted(entrant.scores)
            ax.plot(
                ks,
                [factor * entrant.scores[k][place].value for k in ks],
                color=colours[entrant.method],
                marker=looks.shape(entrant.family),
                ms=3.5,
                lw=2.0 if entrant.method == block.against else 1.1,
            )
        low, high = ax.get_ylim()
        near = 0.5 * (high - low)
        for level in block.levels:
            score = level.scores[place]
            if score is not None and low - near <= factor * score <= high + near:
                ax.axhline(factor * score, color=MUTED, lw=1.1, ls=_dash(block, level), zorder=1)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator(list(block.ks)))
        ax.xaxis.set_major_formatter(FixedFormatter(list(map(str, block.ks))))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_title(setting_name(block, setting))
        ax.set_xlabel("trials of tuning")
        ax.set_ylabel(f"{block.metric}" + (f", {block.unit.mark}" if block.unit.mark else ""))
    lines = [
        Line2D([], [], color=colours[e.method], marker=looks.shape(e.family), ms=4, label=e.method)
        for e in block.entrants
    ]
    lines += _legend_lines(block)
    figure.legend(handles=lines, loc="outside lower center", ncols=4)
    return Drawn(
        f"curves-{number}",
        f"What more tuning buys, {heading(block)}",
        "The expected test score of the trial with the lowest validation loss out of k trials. Intervals are "
        "in scores.csv. Methods without adapter are lines, where they are near.",
        "; ".join(
            f"{e.method} on {setting.task}: "
            + ", ".join(f"{block.unit.score(e.scores[k][place].value)} after {k}" for k in sorted(e.scores))
            for e in block.entrants
            for place, setting in enumerate(block.settings)
        ),
        figure,
    )
