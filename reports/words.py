"""Wording of counts and lists in notes and captions."""

from __future__ import annotations

from collections.abc import Iterable

from reports.inference.intervals import LEAST_SEEDS


def many(count: int, noun: str) -> str:
    """The count with the noun, in the plural unless the count is one."""
    return f"{count:,} {noun}" + ("s" if count != 1 else "")


def no_interval(seeds: int) -> str:
    """The reason why this many seeds, or seed pairs, have no interval."""
    return f"no interval: {many(seeds, 'seed') if seeds < LEAST_SEEDS else 'no spread'}"


def listed(things: Iterable[object]) -> str:
    return ", ".join(map(str, things))
