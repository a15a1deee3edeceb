"""The columns of `predictions.parquet`: example ids, labels, predictions and outputs.

They are `example`, `label`, `prediction` and `logit`, and `text` if a language model wrote answers. Outputs
always have one column per class: `logit_0`, `logit_1`, and so on. Labels and predictions have one column per
class only if an example may have several classes.

If the answers determine the score, packs hold predictions in a compact form (`Compact`). Files of this form
have no logits. They have `classes`, the number of classes, and `log_probability`, the log-probability of the
label.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Integers = NDArray[np.integer[Any]]

#: The two columns that compact predictions have in place of logits, and a list of all their columns.
LOG_PROBABILITY, CLASSES = "log_probability", "classes"
COMPACT = ("example", "label", "prediction", CLASSES, LOG_PROBABILITY)

#: In compact predictions, log-probabilities are integer multiples of `STEP` nats, from `LOWEST` to 0.
STEP, LOWEST = 1e-3, -(2**31)

#: The largest number of classes for which there are compact predictions.
MOST_CLASSES = 2**15


@dataclass(frozen=True)
class Compact:
    """Predictions of one class per example, without the logits."""

    classes: int
    #: Integers (examples,): the examples' ids, their labels, the predicted classes, and the
    #: log-probabilities of the labels as multiples of `STEP`.
    example: Integers
    label: Integers
    prediction: Integers
    steps: Integers

    @property
    def log_probability(self) -> NDArray[np.float64]:
        """The log-probabilities of the labels, in nats."""
        return np.asarray(self.steps * STEP)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the values. Unlike that of a file, it is the same for every version of pyarrow."""
        digest = hashlib.sha256(f"{self.classes}".encode())
        for values in (self.example, self.label, self.prediction, self.steps):
            digest.update(values.astype("<i8").tobytes())
        return digest.hexdigest()

    def file(self) -> bytes:
        """Returns the predictions as the content of a `predictions.parquet`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {
            "example": self.example.astype(np.int64),
            "label": self.label.astype(np.int64),
            "prediction": self.prediction.astype(np.int64),
            CLASSES: np.full(len(self.label), self.classes),
            LOG_PROBABILITY: self.log_probability,
        }
        file = io.BytesIO()
        pq.write_table(pa.table(columns), file)
        return file.getvalue()


def compact(content: bytes) -> Compact | None:
    """Converts the content of a `predictions.parquet`, which may be compact already, to the compact form.

    Returns None if this is impossible, for example because the file is unreadable, an example may have
    several classes, a logit is not finite, or an answer is not the class with the largest logit.
    """
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        table = pq.read_table(io.BytesIO(content))
    except (OSError, ArrowException, ValueError):
        return None
    values = {name: table[name].to_numpy() for name in table.column_names}
    outputs = [f"logit_{number}" for number in range(len(numbered(table.column_names, "logit")))]
    integers = COMPACT[:3] if outputs else COMPACT
    if sorted(table.column_names) != sorted([*integers, *outputs]) or not len(table):
        return None
    if any(values[name].dtype.kind not in "iu" for name in integers if name != LOG_PROBABILITY):
        return None
    example, label, prediction = (values[name] for name in COMPACT[:3])
    classes = len(outputs) if outputs else int(values[CLASSES][0])
    answers = np.stack([label, prediction])
    if not 2 <= classes <= MOST_CLASSES or answers.min() < 0 or answers.max() >= classes:
        return None
    if outputs:
        logits = np.stack([values[name] for name in outputs], axis=1)
        if not np.isfinite(logits).all() or (_of(logits, prediction) < logits.max(1)).any():
            return None
        values[LOG_PROBABILITY] = log_probabilities(logits, label)
    elif (values[CLASSES] != classes).any():
        return None
    steps = np.round(values[LOG_PROBABILITY] / STEP)
    if not ((steps >= LOWEST) & (steps <= 0)).all():
        return None
    return Compact(classes, example, label, prediction, steps.astype(np.int32))


def stored_compact(content: bytes) -> Compact | None:
    """Reads predictions from a file that is in the compact form. Returns None for every other file."""
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        names = pq.read_schema(io.BytesIO(content)).names
    except (OSError, ArrowException, ValueError):
        return None
    return compact(content) if LOG_PROBABILITY in names else None


def log_probabilities(logits: NDArray[Any], labels: Integers) -> NDArray[np.float64]:
    """Returns the log-probability of each example's label (examples,), given logits (examples, classes)."""
    logits = logits.astype(float)
    logits -= logits.max(1, keepdims=True)
    return np.asarray(_of(logits, labels) - np.log(np.exp(logits).sum(1)), dtype=float)


def _of(outputs: NDArray[Any], classes: Integers) -> NDArray[Any]:
    """Returns one output per example: row i of `outputs` (examples, classes) at column `classes[i]`."""
    return np.take_along_axis(outputs, classes[:, None].astype(int), axis=1)[:, 0]


def contradicted(prediction: Integers, label: Integers, log_probability: NDArray[Any], classes: int) -> int:
    """Counts the answers that contradict the log-probability of the label. All arrays are (examples,).

    An answer is the likeliest class. So if the answer is the label, the label has a probability of at least
    1/`classes`. If the answer is another class, the label has a probability of at most 1/2.
    """
    right = prediction == label
    least, most = -np.log(classes) - STEP / 2, -np.log(2) + STEP / 2
    return int((right & (log_probability < least)).sum() + (~right & (log_probability > most)).sum())


def frame_of(content: bytes) -> pd.DataFrame:
    """Reads the table in the bytes of a parquet file. Raises ArrowException or OSError if that fails.

    Metadata for pandas is ignored, since a file that is not trusted may claim anything there.
    """
    import pyarrow.parquet as pq

    frame: pd.DataFrame = pq.read_table(io.BytesIO(content)).replace_schema_metadata().to_pandas()
    return frame


def a_class_each(name: str, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Splits an array (examples, classes) into a column per class, with the names `NAME_0`, `NAME_1`, …"""
    return {f"{name}_{number}": values[:, number] for number in range(values.shape[1])}


def numbered(have: Sequence[str], name: str) -> list[str]:
    """Returns the names of the columns that hold `name`: the column itself, or `NAME_0`, `NAME_1`, …

    `have` are the names of all columns. The list is empty if no name matches.
    """
    return [name] if name in have else [c for c in have if re.fullmatch(rf"{name}_\d+", c)]
