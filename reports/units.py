"""The display of numbers: counts, and scores in percent and points or in the unit of a task's targets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tensorbench.records.metrics import METRICS

NOTHING = "–"


@dataclass(frozen=True)
class Unit:
    """The factor, mark and unit with which scores of one metric are displayed."""

    #: The factor by which a stored score is multiplied for display.
    factor: float
    #: The mark after the name of an axis or column: "%", or empty if scores have the unit of the targets.
    mark: str
    #: The unit of the task's targets, if scores have it and the task names it. Otherwise empty.
    name: str = ""

    def score(self, value: float | None, digits: int = 2) -> str:
        """Formats a score or a spread of scores. `digits` is the number of decimals of a percentage."""
        if value is None:
            return NOTHING
        return f"{100 * value:.{digits}f}" if self.mark else f"{value:.4g}"

    def difference(self, value: float | None, digits: int = 2) -> str:
        """Formats a difference with its sign. `digits` is the number of decimals if it is in points."""
        if value is None:
            return NOTHING
        return f"{100 * value:+.{digits}f}" if self.mark else f"{value:+.4g}"

    def estimate(self, value: float, interval: tuple[float, float] | None) -> str:
        """Formats a score with its interval in brackets, if it has one."""
        return self.score(value) + (f" ({self.between(interval)})" if interval else "")

    def between(self, interval: tuple[float, float] | None) -> str:
        """Formats the interval of a score. Empty if there is none."""
        return " to ".join(map(self.score, interval or ()))

    def named(self, what: str) -> str:
        """The name of an axis or column with its mark, such as "test accuracy, %"."""
        return f"{what}, {self.mark}" if self.mark else what

    def size(self, value: float) -> str:
        """Formats a threshold with its unit, such as "1 point"."""
        if not self.mark:
            return f"{value:.3g} {self.name}".rstrip()
        return f"{100 * value:g} point" + ("s" if value != 0.01 else "")

    @property
    def points(self) -> str:
        """The name of the unit in which differences are displayed, such as "points"."""
        return "points" if self.mark else self.name or "units of the targets"


PERCENT = Unit(100.0, "%")


def unit_of(metric: str, name: str = "") -> Unit:
    """The unit in which scores by this metric are displayed. Percent if `metric` is empty.

    `name` is the unit of the task's targets, if known. Raises UserError for a metric that is not installed.
    """
    return Unit(1.0, "", name) if metric and METRICS.get(metric).in_units else PERCENT


def sign_note(metric: str) -> str:
    """A note on the sign of differences if smaller scores are better by this metric. Otherwise empty."""
    if not metric or METRICS.get(metric).higher:
        return ""
    return f"Less {metric} is better: a positive difference is a reduction."


def minus(text: str) -> str:
    """Replaces the hyphen of a formatted number by a minus sign. A number that rounds to zero has no sign."""
    return text.replace("-", "−") if re.search("[1-9]", text) else text.lstrip("+-")


def many(count: int, noun: str, plural: str = "") -> str:
    """The count with the noun, in the plural unless the count is 1. By default, the plural adds an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def listed(things: Iterable[object]) -> str:
    return ", ".join(map(str, things))
