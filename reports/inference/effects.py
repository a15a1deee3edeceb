"""The difference between two methods over all settings, and its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from tensorbench.reports.inference.crossed import OnSetting, over_settings
from tensorbench.reports.inference.intervals import Bounds, Error


@dataclass(frozen=True)
class Effect:
    """The difference between two methods averaged over settings, in units of the score."""

    #: The difference on each setting.
    parts: tuple[OnSetting, ...]
    difference: float
    #: The error of `difference`. None if the error on any setting is unknown, for example with too few pairs.
    error: Error | None

    @property
    def fewest(self) -> int:
        """The number of pairs on the setting that has the fewest."""
        return min(part.pairs for part in self.parts)

    def interval(self, level: float) -> Bounds | None:
        """The interval of the difference. None if its noise is unknown.

        The noise is unknown if a setting has too few pairs, or if no run differs from another.
        """
        if self.error is None or self.error.none:
            return None
        return self.error.interval(self.difference, level)


def effect(parts: Sequence[OnSetting]) -> Effect:
    """Averages the differences on these settings, with equal weights."""
    return Effect(tuple(parts), float(np.mean([part.difference for part in parts])), over_settings(parts))


class Answer(StrEnum):
    """The size of a difference compared with the threshold: beyond it, within it, or undecided."""

    BEYOND = "beyond"
    WITHIN = "within"
    UNDECIDED = "undecided"
    NONE = "no verdict"


@dataclass(frozen=True)
class Verdict:
    """The verdict on a difference. It follows from the interval alone, whatever the point estimate."""

    answer: Answer
    #: "better" or "worse" if the interval excludes zero. Otherwise empty.
    side: str = ""
    #: The reason why the verdict is weaker than the interval allows. Empty if it is as strong.
    reason: str = ""
    #: The runs to which the verdict is limited, such as "when it trains". Empty if it holds for all runs.
    condition: str = ""
    #: How often the runs of both sides collapse, as text. Empty if none did.
    collapses: str = ""


def verdict(interval: Bounds | None, threshold: float) -> Verdict:
    """The verdict that an interval gives: beyond the threshold, within it, or undecided.

    "Within" is the result of two one-sided tests (Schuirmann, 1987). Without an interval there is no verdict.
    """
    if interval is None:
        return Verdict(Answer.NONE)
    low, high = interval
    side = "better" if low > 0 else "worse" if high < 0 else ""
    if low > threshold or high < -threshold:
        return Verdict(Answer.BEYOND, side)
    if -threshold < low and high < threshold:
        return Verdict(Answer.WITHIN, side)
    return Verdict(Answer.UNDECIDED, side)
