"""Patterns that match messages by the things they name instead of their wording."""

from __future__ import annotations

import re


def naming(*parts: object) -> str:
    """Returns a pattern for messages that name these parts in this order: field, value, accepted values.

    A number does not match inside a longer one.
    """
    return "(?s:.*)".join(
        rf"(?<![\w.]){re.escape(str(part))}(?!\w|\.\d)"
        if isinstance(part, int | float)
        else re.escape(str(part))
        for part in parts
    )
