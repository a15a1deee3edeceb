"""The columns of `predictions.parquet`: an example's id, what is right, what was answered, outputs.

They are `example`, `label`, `prediction` and `logit`, and `text` where a language model wrote. Outputs are
always a column a class: `logit_0`, … So are labels and answers where an example may have several.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray


def a_class_each(name: str, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The columns of a table (examples, classes) by name and number."""
    return {f"{name}_{number}": values[:, number] for number in range(values.shape[1])}


def numbered(have: Sequence[str], name: str) -> list[str]:
    """The columns of that name: itself, or one a class, in the order of their numbers."""
    return [name] if name in have else [c for c in have if re.fullmatch(rf"{name}_\d+", c)]
