"""How scores are shown: in percent and points, or in the units of a task's targets."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bench.metrics import METRICS

NOTHING = "–"


@dataclass(frozen=True)
class Unit:
    """How the scores of one metric are shown."""

    #: What a stored score is multiplied by.
    factor: float
    #: What stands behind the name of an axis or column.
    mark: str
    #: What the task's targets are counted in, where these are the scores' units and the task says it.
    name: str = ""

    def score(self, value: float | None, digits: int = 2) -> str:
        """A score, or how far scores spread."""
        if value is None:
            return NOTHING
        return f"{100 * value:.{digits}f}" if self.mark else f"{value:.4g}"

    def difference(self, value: float | None, digits: int = 2) -> str:
        """With its sign."""
        if value is None:
            return NOTHING
        return f"{100 * value:+.{digits}f}" if self.mark else f"{value:+.4g}"

    def size(self, value: float) -> str:
        """A difference that matters, with its unit."""
        if not self.mark:
            return f"{value:.3g} {self.name}".rstrip()
        return f"{100 * value:g} point" + ("s" if value != 0.01 else "")

    @property
    def points(self) -> str:
        """What differences are counted in."""
        return "points" if self.mark else self.name or "units of the targets"


PERCENT = Unit(100.0, "%")


def unit_of(metric: str, name: str = "") -> Unit:
    """Of a stored metric; of nothing that is scored yet, percent.

    `name` is that of the targets' unit, where it is known. Raises UserError for a metric not installed.
    """
    return Unit(1.0, "", name) if metric and METRICS.get(metric).in_units else PERCENT


def minus(text: str) -> str:
    """A difference with a true minus; what rounds to nothing has no side."""
    return text.replace("-", "−") if re.search("[1-9]", text) else text.lstrip("+-")
