"""Replaces the part of a page between two marks."""

from __future__ import annotations


def replaced(page: str, begin: str, end: str, content: str) -> str:
    """The page with `content` between the marks, in place of the earlier text. Each mark must occur once."""
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return before + begin + content + end + after
