"""The part of a page that a script writes, between two marks."""

from __future__ import annotations


def replaced(page: str, begin: str, end: str, content: str) -> str:
    """The page with other content between the marks, which have to stand in it once."""
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return before + begin + content + end + after
