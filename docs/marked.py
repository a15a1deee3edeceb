"""Replaces the part of a page between two marks, and writes tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], rule: Sequence[str] = ()) -> str:
    """A table in Markdown. `rule` has the marks beneath the headings, "---" by default."""
    lines = [head, rule or ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def replaced(page: str, begin: str, end: str, content: str) -> str:
    """The page with `content` between the marks, in place of the earlier text. Each mark must occur once."""
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return before + begin + content + end + after
