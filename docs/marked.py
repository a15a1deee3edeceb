"""Replaces the part of a page between two marks."""

from __future__ import annotations


def replaced(page: str, begin: str, end: str, content: str) -> str:
    """The page with other content between the marks, each of which must occur once."""
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return before + begin + content + end + after
