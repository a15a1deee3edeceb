"""How scores are shown: in percent and points, or in the units of a task's targets."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bench.metrics import METRICS

NOTHING = "–"


@dataclass(frozen=True)
class Unit:
    """The display of the scores of one metric."""

    #: Factor on a stored score.
    factor: float
    #: Mark behind the name of an axis or column.
    mark: str
    #: Unit of the task's targets, if scores have it and the task names it.
    name: str = ""

    def score(self, value: float | None, digits: int = 2) -> str:
        """A score, or a spread of scores."""
        if value is None:
            return NOTHING
        return f"{100 * value:.{digits}f}" if self.mark else f"{value:.4g}"

    def difference(self, value: float | None, digits: int = 2) -> str:
        """The text of a difference, which begins with its sign."""
        if value is None:
            return NOTHING
        return f"{100 * value:+.{digits}f}" if self.mark else f"{value:+.4g}"

    def size(self, value: float) -> str:
        """A threshold, with its unit."""
        if not self.mark:
            return f"{value:.3g} {self.name}".rstrip()
        return f"{100 * value:g} point" + ("s" if value != 0.01 else "")

    @property
    def points(self) -> str:
        """The unit of differences."""
        return "points" if self.mark else self.name or "units of the targets"


PERCENT = Unit(100.0, "%")


def unit_of(metric: str, name: str = "") -> Unit:
    """The unit of a stored metric; percent without any score.

    `name`: the unit of the targets, if known. Raises UserError for a metric that is not installed.
    """
    return Unit(1.0, "", name) if metric and METRICS.get(metric).in_units else PERCENT


def minus(text: str) -> str:
    """A difference with a true minus; one that rounds to zero has no sign."""
    return text.replace("-", "−") if re.search("[1-9]", text) else text.lstrip("+-")
