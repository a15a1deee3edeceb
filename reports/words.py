"""Wording for counts and lists in notes and captions."""

from __future__ import annotations

from collections.abc import Iterable


def many(count: int, noun: str) -> str:
    """The count with the noun, which is in the plural unless the count is 1."""
    return f"{count:,} {noun}" + ("s" if count != 1 else "")


def listed(things: Iterable[object]) -> str:
    return ", ".join(map(str, things))
