"""How far one method is from another over all settings, and what may be said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from reports.inference.crossed import OnSetting, over_settings
from reports.inference.intervals import Bounds, Error


@dataclass(frozen=True)
class Effect:
    """The mean over settings of a mean difference over seed pairs, in the score's units."""

    parts: tuple[OnSetting, ...]
    difference: float
    #: None where a setting has fewer than `LEAST_SEEDS` pairs.
    error: Error | None

    @property
    def pairs(self) -> int:
        return sum(part.pairs for part in self.parts)

    @property
    def fewest(self) -> int:
        """Pairs of the setting that has the fewest."""
        return min(part.pairs for part in self.parts)

    @property
    def counted(self) -> int:
        """On how many settings the test examples count, and not the seeds alone."""
        return sum(part.count is not None for part in self.parts)

    def on(self, places: Sequence[int]) -> Effect:
        """The same over the settings at these places alone."""
        return effect([self.parts[place] for place in places])

    def interval(self, level: float) -> Bounds | None:
        """None where nothing is known of the noise: too few pairs on a setting, or no spread at all."""
        if self.error is None or self.error.none:
            return None
        return self.error.interval(self.difference, level)

    def at_chosen_points(self, level: float) -> Bounds | None:
        """The same as if the points that tuning chose had been fixed beforehand."""
        return replace(self, error=self.error and replace(self.error, tuning=0.0)).interval(level)


def effect(parts: Sequence[OnSetting]) -> Effect:
    """The effect over these settings, each with one weight."""
    return Effect(tuple(parts), float(np.mean([part.difference for part in parts])), over_settings(parts))


class Answer(StrEnum):
    """What a verdict says of the size of a difference."""

    BEYOND = "beyond"
    WITHIN = "within"
    UNDECIDED = "undecided"
    NONE = "no verdict"


@dataclass(frozen=True)
class Verdict:
    """What one interval says of a difference. It never depends on where in the interval the estimate is."""

    answer: Answer
    #: "better" or "worse" where the whole interval is on one side of zero, else empty.
    side: str = ""

    def __str__(self) -> str:
        if self.answer is Answer.BEYOND:
            return f"{self.side}, beyond the threshold"
        if self.answer is Answer.WITHIN:
            return "within the threshold" + (f" ({self.side})" if self.side else "")
        if self.answer is Answer.UNDECIDED and self.side:
            return f"{self.side}, size undecided"
        return str(self.answer)


def verdict(interval: Bounds | None, threshold: float, *, collapsed: bool = False) -> Verdict:
    """Beyond the threshold if the whole interval is, within it if the whole interval is (which is two
    one-sided tests, Schuirmann, 1987), and else undecided.

    With `collapsed`, which says that runs of a side collapsed, it is never within: an interval of a few runs
    does not cover what happens in few of them.
    """
    if interval is None:
        return Verdict(Answer.NONE)
    low, high = interval
    side = "better" if low > 0 else "worse" if high < 0 else ""
    if low > threshold or high < -threshold:
        return Verdict(Answer.BEYOND, side)
    if -threshold < low and high < threshold and not collapsed:
        return Verdict(Answer.WITHIN, side)
    return Verdict(Answer.UNDECIDED, side)


def weaker(one: Verdict, other: Verdict) -> Verdict:
    """What both verdicts say."""
    if Answer.NONE in (one.answer, other.answer):
        return Verdict(Answer.NONE)
    side = one.side if one.side == other.side else ""
    agree = one.answer is other.answer and (side or one.answer is not Answer.BEYOND)
    return Verdict(one.answer if agree else Answer.UNDECIDED, side)
