"""Makes patterns for messages, which match the names and values in a message whatever its wording."""

from __future__ import annotations

import re


def naming(*parts: object) -> str:
    """Makes a pattern for messages that contain these texts and numbers in this order.

    For example, a message may have to name a field, its value, and the accepted values. A number does not
    match a part of a longer number.
    """
    return "(?s:.*)".join(
        rf"(?<![\w.]){re.escape(str(part))}(?!\w|\.\d)"
        if isinstance(part, int | float)
        else re.escape(str(part))
        for part in parts
    )
