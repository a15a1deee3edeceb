"""What each method can do, by what its runs stored when they ran. Runs of older versions stored nothing."""

from __future__ import annotations

from collections.abc import Iterable

from methods.capability import Capability
from reports.study import Cell

#: What stands in tables, where the words would be too long.
LETTERS = {
    Capability.MERGES: "M",
    Capability.EXPORTS: "E",
    Capability.ZERO_START: "Z",
    Capability.BIASES: "B",
    Capability.UNEQUAL: "U",
    Capability.FREE: "F",
}


def capabilities(cell: Cell) -> tuple[str, ...]:
    """The words of `methods.capability.Capability`; empty where nothing is known."""
    return tuple(word for word in cell.capabilities.split(", ") if word)


def letters(cell: Cell) -> str:
    """The same in letters, in the order of `LETTERS`; a dash where nothing is known."""
    known = capabilities(cell)
    return " ".join(letter for word, letter in LETTERS.items() if word in known) or "–"


def told(cell: Cell) -> str:
    """The same in a sentence, with what inference costs."""
    known = capabilities(cell)
    if not known:
        return "Its runs do not tell."
    unmerged, merged = inference_cost(known)
    return f"{', '.join(known)}; inference costs {unmerged}, merged {merged}"


def inference_cost(known: Iterable[str]) -> tuple[str, str]:
    """What inference costs beyond the plain model with these capabilities: unmerged, and merged."""
    words = set(known)
    return (
        "nothing" if Capability.FREE in words else "more",
        "nothing" if words & {Capability.FREE, Capability.MERGES} else "more",
    )
