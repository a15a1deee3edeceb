"""Messages by what they name, so that a sentence may be written anew."""

from __future__ import annotations

import re


def naming(*parts: object) -> str:
    """A pattern for messages that name these in this order, such as a field, its value and what is accepted.

    A number is not found within a longer one.
    """
    return "(?s:.*)".join(
        rf"(?<![\w.]){re.escape(str(part))}(?!\w|\.\d)"
        if isinstance(part, int | float)
        else re.escape(str(part))
        for part in parts
    )
