"""The figures of evidence.md that show differences with intervals, and the differences on each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.drawing import INK, MUTED, RULE, SERIES, SHAPES, panels, styled
from reports.inference.intervals import Bounds
from reports.thresholds import DEFAULT
from reports.units import PERCENT

from .packed import points
from .picture import Picture


@dataclass(frozen=True)
class Axis:
    """The quantity on the axis: its name, its format as text, and the factor from values to the axis."""

    name: str
    said: Callable[[float], str]
    factor: float = 1
    #: The smallest difference that matters, if one was stated.
    threshold: float | None = None


SCORE = Axis("difference in accuracy, in points", points, PERCENT.factor, DEFAULT)


@dataclass(frozen=True)
class Row:
    """A difference, drawn without interval if it has none."""

    method: str
    other: str
    difference: float
    interval: Bounds | None
    #: The difference on each task.
    on_tasks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Forest(Picture):
    """The comparisons of a question, from top to bottom."""

    name: str
    rows: Sequence[Row]
    axis: Axis = SCORE

    @property
    def alternative(self) -> str:
        return f"{self.axis.name.capitalize()}: {'; '.join(map(self._row_text, self.rows))}."

    @property
    def title(self) -> str:
        return f"{self.axis.name.capitalize()}, with intervals"

    def _row_text(self, row: Row) -> str:
        interval = " to ".join(map(self.axis.said, row.interval)) if row.interval else "no interval"
        tasks = "".join(f", {task} {self.axis.said(value)}" for task, value in row.on_tasks.items())
        return f"{row.method} from {row.other} {self.axis.said(row.difference)} ({interval}{tasks})"

    @property
    def _labels(self) -> list[str]:
        if self._reference:
            return [row.method for row in self.rows]
        return [f"{row.method}\nfrom {row.other}" for row in self.rows]

    @property
    def _reference(self) -> str:
        """The common reference of all rows, or an empty text."""
        references = {row.other for row in self.rows}
        return references.pop() if len(references) == 1 else ""

    def figure(self) -> Figure:
        line = 0.26 if self._reference else 0.4
        figure, (ax,) = panels(1, height=1.1 + line * len(self.rows), wide=True)
        with styled():
            self._draw(figure, ax)
        return figure

    def _draw(self, figure: Figure, ax: Axes) -> None:
        factor, threshold = self.axis.factor, self.axis.threshold
        if threshold is not None:
            ax.axvspan(-factor * threshold, factor * threshold, color=RULE, alpha=0.5, lw=0)
        ax.axvline(0, color=MUTED, lw=0.8)
        tasks = list(dict.fromkeys(task for row in self.rows for task in row.on_tasks))
        for number, task in enumerate(tasks):
            on = {-y: row.on_tasks[task] for y, row in enumerate(self.rows) if task in row.on_tasks}
            ax.scatter(
                [factor * value for value in on.values()],
                list(on),
                s=22,
                facecolor="none",
                edgecolor=SERIES[number + 1],
                marker=SHAPES[number + 1],
                label=task,
            )
        for y, row in enumerate(self.rows):
            if row.interval:
                ends = [factor * end for end in row.interval]
                ax.plot(ends, [-y, -y], color=SERIES[0], lw=2, solid_capstyle="butt")
        means = [factor * row.difference for row in self.rows]
        ax.scatter(means, [-y for y in range(len(means))], s=34, color=SERIES[0], zorder=3, label="mean")
        ax.set_yticks([-y for y in range(len(means))], self._labels)
        ax.tick_params(axis="y", labelcolor=INK)
        ax.set_ylim(-len(means) + 0.4, 0.6)
        band = "; the band is what does not matter" * (threshold is not None)
        ax.set_xlabel(f"{self.axis.name}{f', from {self._reference}' * bool(self._reference)}{band}")
        if tasks:
            figure.legend(loc="outside upper right", ncols=len(tasks) + 1, columnspacing=1.4)
