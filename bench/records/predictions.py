"""The columns of `predictions.parquet`: example ids, labels, predictions and outputs.

They are `example`, `label`, `prediction` and `logit`, and `text` where a language model wrote. Outputs are
always a column a class: `logit_0`, … So are labels and answers where an example may have several.
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
    """The table in a file's bytes. Raises ArrowException or OSError for a file that holds none.

    Metadata for pandas is ignored, since a foreign file may state anything there.
    """
    import pyarrow.parquet as pq

    frame: pd.DataFrame = pq.read_table(io.BytesIO(content)).replace_schema_metadata().to_pandas()
    return frame


def a_class_each(name: str, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The columns of a table (examples, classes) by name and number."""
    return {f"{name}_{number}": values[:, number] for number in range(values.shape[1])}


def numbered(have: Sequence[str], name: str) -> list[str]:
    """The column of this name, or its numbered columns in order."""
    return [name] if name in have else [c for c in have if re.fullmatch(rf"{name}_\d+", c)]
