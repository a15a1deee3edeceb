"""The answer to a question of the study, and the format of its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from tensorbench.reports.drawing import Drawn
from tensorbench.reports.inference.intervals import Bounds
from tensorbench.reports.units import PERCENT

PICTURES = Path(__file__).parents[1] / "pictures"


@dataclass(frozen=True)
class Picture:
    """A figure of a page. Its file also holds the figure's numbers as text."""

    #: The name of the file, without its ending.
    name: str
    drawn: Drawn

    @property
    def path(self) -> Path:
        return PICTURES / f"{self.name}.svg"

    @property
    def shown(self) -> str:
        """The Markdown that shows the figure on a page of docs/results."""
        return f"![{self.drawn.title}](../pictures/{self.path.name})"

    def svg(self) -> str:
        """The figure as SVG, with its numbers in the element `desc`."""
        description = f"<desc>{escape(self.drawn.alternative)}</desc>"
        return self.drawn.svg().replace("<metadata>", f"{description}\n<metadata>", 1)


@dataclass(frozen=True)
class Answer:
    """The answer to a question."""

    #: The tables behind the answer or, if there is no answer yet, the number of complete studies.
    text: str
    #: The answer in a sentence. Empty if there is none.
    short: str = ""


def points(value: float) -> str:
    """Formats a difference of scores in points.

    Means of scores often lie halfway between two displayed values. Rounding first keeps floating-point errors
    from deciding which one is shown.
    """
    return PERCENT.difference(round(value, 9)).replace("-", "−")


def bounds(interval: Bounds | None) -> str:
    """Formats an interval of a difference of scores in points. "none" if there is no interval."""
    return "none" if interval is None else " to ".join(map(points, interval))


def with_interval(difference: float, interval: Bounds | None) -> str:
    """Formats a difference of scores in points, with its interval in brackets."""
    return f"{points(difference)} ({bounds(interval)})"
