"""The columns of `predictions.parquet`: example ids, labels, predictions and outputs.

They are `example`, `label`, `prediction` and `logit`, and `text` if a language model wrote answers. Outputs
always have one column per class: `logit_0`, … Labels and predictions have one column per class only if an
example may have several classes.

Packs hold predictions in a compact form if the answers determine the score (`Compact`). Files of this form
have `classes`, the number of classes, and `log_probability`, the label's log-probability, in place of the
logits.
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

#: The columns of compact predictions.
LOG_PROBABILITY, CLASSES = "log_probability", "classes"
COMPACT = ("example", "label", "prediction", CLASSES, LOG_PROBABILITY)

#: Compact log-probabilities are integer multiples of `STEP` nats, and `LOWEST` is the smallest multiple.
STEP, LOWEST = 1e-3, -(2**31)

#: The most classes of compact predictions.
MOST_CLASSES = 2**15


@dataclass(frozen=True)
class Compact:
    """Predictions of one class per example without their logits."""

    classes: int
    #: Whole numbers (examples,): ids, classes, answered classes, and log-probabilities of the labels in
    #: `STEP`s.
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
        """The sha256 of the values, which is the same for every version of pyarrow."""
        digest = hashlib.sha256(f"{self.classes}".encode())
        for values in (self.example, self.label, self.prediction, self.steps):
            digest.update(values.astype("<i8").tobytes())
        return digest.hexdigest()

    def file(self) -> bytes:
        """The predictions as the bytes of a `predictions.parquet`."""
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
    """The compact form of a file of predictions, which may be compact already.

    None if the file is unreadable, is not of one class per example, or has answers or log-probabilities that
    do not follow from finite logits.
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
    """The predictions of a file that has no logits. None for every other file."""
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        names = pq.read_schema(io.BytesIO(content)).names
    except (OSError, ArrowException, ValueError):
        return None
    return compact(content) if LOG_PROBABILITY in names else None


def log_probabilities(logits: NDArray[Any], labels: Integers) -> NDArray[np.float64]:
    """The log-probability of each example's label (examples,) by its logits (examples, classes)."""
    logits = logits.astype(float)
    logits -= logits.max(1, keepdims=True)
    return np.asarray(_of(logits, labels) - np.log(np.exp(logits).sum(1)), dtype=float)


def _of(outputs: NDArray[Any], classes: Integers) -> NDArray[Any]:
    """From outputs (examples, classes), the output of each example's class in `classes` (examples,)."""
    return np.take_along_axis(outputs, classes[:, None].astype(int), axis=1)[:, 0]


def contradicted(prediction: Integers, label: Integers, log_probability: NDArray[Any], classes: int) -> int:
    """The number of answers that the label's log-probability rules out. All arrays are (examples,).

    An answer is the likeliest class. So a label that was answered has a probability of at least 1/`classes`,
    and any other label one of at most 1/2.
    """
    right = prediction == label
    least, most = -np.log(classes) - STEP / 2, -np.log(2) + STEP / 2
    return int((right & (log_probability < least)).sum() + (~right & (log_probability > most)).sum())


def frame_of(content: bytes) -> pd.DataFrame:
    """Reads the table in a file's bytes. Raises ArrowException or OSError if there is no table.

    Metadata for pandas is ignored, since an untrusted file may claim anything there.
    """
    import pyarrow.parquet as pq

    frame: pd.DataFrame = pq.read_table(io.BytesIO(content)).replace_schema_metadata().to_pandas()
    return frame


def a_class_each(name: str, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The columns of an array (examples, classes), one per class, by numbered name."""
    return {f"{name}_{number}": values[:, number] for number in range(values.shape[1])}


def numbered(have: Sequence[str], name: str) -> list[str]:
    """The column with this name, or its numbered columns in order. Empty without such columns."""
    return [name] if name in have else [c for c in have if re.fullmatch(rf"{name}_\d+", c)]
