"""The answer to a question of the study, and the format of its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from tensorbench.reports.blocks import Comparison
from tensorbench.reports.drawing import Drawn
from tensorbench.reports.inference.effects import Word, verdict
from tensorbench.reports.inference.intervals import Bounds
from tensorbench.reports.units import PERCENT

PICTURES = Path(__file__).parents[1] / "pictures"
#: The smallest p-value that is told from zero, and the accuracy of p-values.
_LEAST, _HALVINGS = 1e-9, 60


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
class Claim:
    """A comparison that answers a question, with the threshold of *equivalent*."""

    compared: Comparison
    threshold: float

    @property
    def p(self) -> float:
        """The smallest error probability at which its own interval gives its verdict. 1 without a verdict."""
        word = self.compared.verdict.word
        if word not in (Word.BETTER, Word.WORSE, Word.EQUIVALENT):
            return 1.0
        given, missed = 1.0, _LEAST
        for _ in range(_HALVINGS):
            middle = (given * missed) ** 0.5
            low, high = self.compared.effect.interval(1 - middle) or (-1.0, 1.0)
            found = -self.threshold < low and high < self.threshold
            if word is not Word.EQUIVALENT:
                found = verdict((low, high), 0.0).word is word
            given, missed = (middle, missed) if found else (given, middle)
        return given


@dataclass(frozen=True)
class Answer:
    """The answer to a question."""

    #: The tables behind the answer or, if there is no answer yet, the number of complete studies.
    text: str
    #: The answer in a sentence. Empty if there is none.
    short: str = ""
    #: The comparisons that the answer rests on, by name.
    claims: Mapping[str, Claim] = field(default_factory=dict)


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
