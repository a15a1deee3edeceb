"""The form of an answer to a question, for findings.md, evidence.md and leaderboard.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from reports.words import many

from .picture import Picture

#: Up to this many comparisons are all listed in short; beyond it, only the significant ones.
FEW = 2


@dataclass(frozen=True)
class Outcome:
    """One comparison, as text."""

    compared: str
    difference: str
    interval: str
    verdict: str
    #: Whether the interval excludes zero.
    apart: bool


@dataclass(frozen=True)
class Answer:
    """The answer to a question."""

    #: The question's progress, in a few words.
    state: str
    #: The full text, for evidence.md.
    text: str
    pictures: Sequence[Picture] = ()
    #: The short text, for findings.md and leaderboard.md. Empty while there is no answer.
    short: str = ""
    #: The commands that make the report behind the answer. Empty if there is none.
    command: str = ""


def shortly(letter: str, outcomes: Sequence[Outcome]) -> str:
    """Lists significant comparisons with their numbers, linked to the evidence, and counts the others."""
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
