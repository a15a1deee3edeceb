"""The types of fixtures that many tests take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Runs the program with these arguments in this process. See `call` in conftest.py.
Call = Callable[..., Any]
#: Makes the address of a new store in a folder. See `new_store` in conftest.py.
NewStore = Callable[[Path], str]
