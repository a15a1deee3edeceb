"""What findings.md says of a question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .picture import Picture


@dataclass(frozen=True)
class Answer:
    """What is found of a question."""

    #: In a few words, and in full.
    state: str
    told: str
    pictures: Sequence[Picture] = ()
