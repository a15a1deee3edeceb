"""Text in a form that every store accepts."""

from __future__ import annotations

from typing import Any

from tensorbench.methods.errors import cut

#: The longest message in characters. MLflow accepts 8000.
LONGEST = 5000
#: The longest run name in characters, the limit of databases other than SQLite.
LONGEST_NAME = 250


def storable(text: str) -> str:
    """Escapes NUL characters, which some databases refuse, and lone surrogates, which UTF-8 cannot encode.

    In Python, lone surrogates represent bytes of file names that are not UTF-8.
    """
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def message(text: str) -> str:
    """Makes a text storable and cuts it to `LONGEST` characters."""
    return cut(storable(text), LONGEST)


def run_name(text: str) -> str:
    """Makes a run's name storable and cuts it to `LONGEST_NAME` characters."""
    return cut(storable(text), LONGEST_NAME)


def all_storable(content: Any) -> Any:
    """Makes every text in JSON content storable, keys included."""
    if isinstance(content, str):
        return storable(content)
    if isinstance(content, dict):
        return {storable(key): all_storable(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [all_storable(value) for value in content]
    return content
