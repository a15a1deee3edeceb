"""The difference between two methods over all settings, and its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from tensorbench.reports.inference.crossed import OnSetting, over_settings
from tensorbench.reports.inference.intervals import Bounds, Error, simultaneous


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

    def level(self, claims: int) -> float:
        """The level of each of several intervals for their joint level, over all looks if there are several.

        `claims` is the number of intervals.
        """
        looks = self.parts[0].looks
        return simultaneous(claims) if looks is None else looks.level(claims, self.fewest)

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


class Word(StrEnum):
    """The verdicts on a difference, in the words that every table, page and message uses."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    INCONCLUSIVE = "inconclusive"
    NONE = "no verdict"


@dataclass(frozen=True)
class Verdict:
    """The verdict on a difference. It follows from the interval alone, whatever the point estimate."""

    word: Word
    #: The reason why the verdict is weaker than the interval allows. Empty if it is as strong.
    reason: str = ""
    #: The runs to which the verdict is limited, such as "when it trains". Empty if it holds for all runs.
    condition: str = ""
    #: How often the runs of both sides collapse, as text. Empty if none did.
    collapses: str = ""
    #: How many kept trials lie near an end of a window, and the gain beyond it that would change the verdict,
    #: as text. Empty if that is not in question.
    window: str = ""

    @property
    def side(self) -> str:
        """ "better" or "worse" if that is the verdict. Otherwise empty."""
        return self.word if self.word in (Word.BETTER, Word.WORSE) else ""


def verdict(interval: Bounds | None, threshold: float) -> Verdict:
    """The verdict that an interval of a difference gives.

    *Better* and *worse*: the interval excludes zero. *Equivalent*: it includes zero and lies within the
    threshold, as by two one-sided tests (Schuirmann, 1987). *Inconclusive*: anything else. Without an
    interval there is no verdict.
    """
    if interval is None:
        return Verdict(Word.NONE)
    low, high = interval
    if low > 0:
        return Verdict(Word.BETTER)
    if high < 0:
        return Verdict(Word.WORSE)
    within = -threshold < low and high < threshold
    return Verdict(Word.EQUIVALENT if within else Word.INCONCLUSIVE)
