"""Wording for counts and lists in notes and captions."""

from __future__ import annotations

from collections.abc import Iterable

from tensorbench.reports.inference.intervals import LEAST_SEEDS


def many(count: int, noun: str) -> str:
    """The count with the noun, which is in the plural unless the count is 1."""
    return f"{count:,} {noun}" + ("s" if count != 1 else "")


def no_interval(seeds: int) -> str:
    """Says why there is no interval for this many seeds or seed pairs."""
    return f"no interval: {many(seeds, 'seed') if seeds < LEAST_SEEDS else 'no spread'}"


def listed(things: Iterable[object]) -> str:
    return ", ".join(map(str, things))
