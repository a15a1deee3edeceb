"""What each method can do, by what its runs stored when they ran. Runs of older versions stored nothing."""

from __future__ import annotations

from collections.abc import Iterable

from methods.capability import Capability
from reports.study import Cell


def capabilities(cells: Iterable[Cell]) -> dict[str, tuple[str, ...]]:
    """By method, the words of `methods.capability.Capability`; methods of which nothing is known are left
    out.
    """
    found: dict[str, tuple[str, ...]] = {}
    for cell in cells:
        if cell.capabilities:
            found.setdefault(cell.method, tuple(cell.capabilities.split(", ")))
    return found


def inference_cost(known: Iterable[str]) -> tuple[str, str]:
    """What inference costs beyond the plain model with these capabilities: unmerged, and merged."""
    words = set(known)
    return (
        "none" if Capability.FREE in words else "more",
        "none" if words & {Capability.FREE, Capability.MERGES} else "more",
    )
