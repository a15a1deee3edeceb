"""The display of scores: in percent and points, or in the units of a task's targets."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bench.metrics import METRICS

NOTHING = "–"


@dataclass(frozen=True)
class Unit:
    """The factor, mark and unit with which scores of one metric are displayed."""

    #: The factor from a stored score to a displayed one.
    factor: float
    #: The mark after the name of an axis or column.
    mark: str
    #: The unit of the task's targets, if scores have it and the task names it.
    name: str = ""

    def score(self, value: float | None, digits: int = 2) -> str:
        """Formats a score, or a spread of scores."""
        if value is None:
            return NOTHING
        return f"{100 * value:.{digits}f}" if self.mark else f"{value:.4g}"

    def difference(self, value: float | None, digits: int = 2) -> str:
        """Formats a difference, beginning with its sign."""
        if value is None:
            return NOTHING
        return f"{100 * value:+.{digits}f}" if self.mark else f"{value:+.4g}"

    def size(self, value: float) -> str:
        """Formats a threshold with its unit."""
        if not self.mark:
            return f"{value:.3g} {self.name}".rstrip()
        return f"{100 * value:g} point" + ("s" if value != 0.01 else "")

    @property
    def points(self) -> str:
        """The name of the unit of differences, such as points."""
        return "points" if self.mark else self.name or "units of the targets"


PERCENT = Unit(100.0, "%")


def unit_of(metric: str, name: str = "") -> Unit:
    """The unit of a stored metric. Percent if there is no score.

    `name` is the unit of the targets, if known. Raises UserError for a metric that is not installed.
    """
    return Unit(1.0, "", name) if metric and METRICS.get(metric).in_units else PERCENT


def minus(text: str) -> str:
    """Writes a difference with a true minus sign, and without any sign if it rounds to zero."""
    return text.replace("-", "−") if re.search("[1-9]", text) else text.lstrip("+-")
