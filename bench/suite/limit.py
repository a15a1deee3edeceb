"""How long a trial may take."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

from methods.validation import Frozen


def _read(value: Any) -> float | str | None:
    text = str(value)
    if value is None:
        return None
    if isinstance(value, bool) or not re.fullmatch(r"\d+(\.\d+)?x?", text) or not float(text.rstrip("x")):
        raise ValueError("seconds, or a multiple of what such trials took: 3600, 5x")
    return text if text.endswith("x") else float(text)


#: Seconds, or a multiple, as `5x`, of what trials of the same method, backbone and task took.
Timeout = Annotated[float | str | None, BeforeValidator(_read)]


class Limit(Frozen):
    """A limit as a command takes it."""

    trial_timeout: Timeout = None
