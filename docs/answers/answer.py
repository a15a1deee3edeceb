"""What findings.md and evidence.md say of a question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from reports.words import many

from .picture import Picture

#: So many comparisons are all told in short, told apart or not.
FEW = 2


@dataclass(frozen=True)
class Outcome:
    """One comparison, in words."""

    compared: str
    difference: str
    interval: str
    verdict: str
    #: Whether the interval is without zero.
    apart: bool


@dataclass(frozen=True)
class Answer:
    """What is found of a question."""

    #: How far it is, in a few words.
    state: str
    #: In full, for evidence.md.
    text: str
    pictures: Sequence[Picture] = ()
    #: For findings.md; empty as long as there is no answer.
    short: str = ""


def shortly(letter: str, outcomes: Sequence[Outcome]) -> str:
    """Those that are told apart with their numbers, which lead to the evidence; the others are counted."""
    shown = [outcome for outcome in outcomes if outcome.apart or len(outcomes) <= FEW]
    verdicts = Counter(outcome.verdict for outcome in outcomes if outcome not in shown)
    numbers = [
        f"{row.compared} [{row.difference}](evidence.md#{letter}) ({row.interval}), {row.verdict}"
        for row in shown
    ]
    counted = [
        f"{count} of {many(len(outcomes), 'comparison')} {verdict}" for verdict, count in verdicts.items()
    ]
    return f"{'; '.join(numbers + counted)}."
