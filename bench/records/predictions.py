"""The columns of `predictions.parquet`: example ids, labels, predictions and outputs.

They are `example`, `label`, `prediction` and `logit`, and `text` if a language model wrote answers. Outputs
always have one column per class: `logit_0`, … Labels and predictions have one column per class only if an
example may have several classes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd


def frame_of(content: bytes) -> pd.DataFrame:
    """Reads the table in a file's bytes. Raises ArrowException or OSError if there is no table.

    Metadata for pandas is ignored, since a foreign file may claim anything there.
    """
    import pyarrow.parquet as pq

    frame: pd.DataFrame = pq.read_table(io.BytesIO(content)).replace_schema_metadata().to_pandas()
    return frame


def a_class_each(name: str, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The columns of an array (examples, classes), one per class, by numbered name."""
    return {f"{name}_{number}": values[:, number] for number in range(values.shape[1])}


def numbered(have: Sequence[str], name: str) -> list[str]:
    """The column with this name, or its numbered columns in order."""
    return [name] if name in have else [c for c in have if re.fullmatch(rf"{name}_\d+", c)]
