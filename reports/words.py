"""How notes and captions say counts and lists."""

from __future__ import annotations

from collections.abc import Iterable


def many(count: int, what: str) -> str:
    """The count with the noun, in the plural unless it is one."""
    return f"{count:,} {what}" + ("s" if count != 1 else "")


def listed(things: Iterable[object]) -> str:
    return ", ".join(map(str, things))
