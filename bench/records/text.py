"""Text in a form that every store takes."""

from __future__ import annotations

from typing import Any

#: Longest message in characters, which is MLflow's limit for a tag.
LONGEST = 5000
#: The same of a run's name: SQLite takes any, other databases no more.
LONGEST_NAME = 250


def storable(text: str) -> str:
    """The text with escapes for NUL and lone surrogates, which databases and UTF-8 refuse.

    Python uses lone surrogates for bytes of file names that are not UTF-8.
    """
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def message(text: str) -> str:
    """A storable text that is no longer than `LONGEST`."""
    return _cut(storable(text), LONGEST)


def run_name(text: str) -> str:
    """A storable name of a run that is no longer than `LONGEST_NAME`."""
    return _cut(storable(text), LONGEST_NAME)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def all_storable(content: Any) -> Any:
    """Content of JSON, with every text in it storable."""
    if isinstance(content, str):
        return storable(content)
    if isinstance(content, dict):
        return {storable(key): all_storable(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [all_storable(value) for value in content]
    return content
