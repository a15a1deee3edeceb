"""The predictions of a run: example ids, labels, answers and outputs, stored as a safetensors file.

The file has the tensors `example`, `label`, `prediction` and `logit`. If a language model wrote answers, it
also has `text`, their UTF-8 bytes one after the other, and `text_ends`, the position at which each text ends.

If the answers determine the score, packs hold predictions in a compact form (`compact`), which has no logits.
Instead, it has `classes`, the number of classes, and `steps`, the log-probabilities of the labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tensorbench.records.pack_format import MOST_CLASSES

Integers = NDArray[np.integer[Any]]

#: The compact form stores log-probabilities as multiples of -`STEP` nats, from 0 to `MOST_STEPS`.
STEP, MOST_STEPS = 1e-3, 2**32 - 1


@dataclass(frozen=True)
class Predictions:
    """What a model predicted for each example of a split."""

    #: The examples' ids, integers (examples,).
    example: Integers
    #: Labels and answers (examples,), or (examples, classes) if an example may have several classes.
    label: NDArray[Any]
    prediction: NDArray[Any]
    #: The model's outputs (examples, classes). None in the compact form.
    logit: NDArray[Any] | None = None
    #: In the compact form, the number of classes, and the log-probabilities of the labels in multiples of
    #: -`STEP` nats (examples,).
    classes: int = 0
    steps: Integers | None = None
    #: The written answers of a language model.
    text: tuple[str, ...] | None = None

    @property
    def log_probability(self) -> NDArray[np.float64]:
        """The log-probabilities of the labels in nats (examples,). Only the compact form has them."""
        return np.asarray(self.steps) * -STEP

    def file(self) -> bytes:
        """Returns the content of the file. Equal predictions give equal bytes."""
        tensors = {"example": self.example, "label": self.label, "prediction": self.prediction}
        if self.logit is not None:
            tensors["logit"] = self.logit
        else:
            tensors |= {"classes": np.array([self.classes]), "steps": np.asarray(self.steps)}
        if self.text is not None:
            texts = [text.encode() for text in self.text]
            tensors["text"] = np.frombuffer(b"".join(texts), np.uint8)
            tensors["text_ends"] = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return save({name: np.ascontiguousarray(values) for name, values in tensors.items()})


#: The largest header of a file, in bytes. It describes seven arrays; an entry takes much more memory than
#: the header's text.
MOST_HEADER = 2**16


def tensors_in(content: bytes) -> dict[str, NDArray[Any]]:
    """Reads a safetensors file. Needs no more memory than the file has bytes.

    Raises ValueError if it is malformed, and for a header of more than `MOST_HEADER` bytes.
    """
    if (header := int.from_bytes(content[:8], "little")) > MOST_HEADER:
        raise ValueError(f"a header of {header:,} bytes, more than {MOST_HEADER:,}")
    try:
        return load(content)
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"it is no safetensors file of numbers: {error}") from error


def read_predictions(content: bytes) -> Predictions:
    """Reads predictions from the content of their file. Raises ValueError if it is malformed."""
    tensors = tensors_in(content)
    try:
        example, label, prediction = (tensors.pop(name) for name in ("example", "label", "prediction"))
        text = _texts(tensors.pop("text"), tensors.pop("text_ends")) if "text" in tensors else None
        if "logit" in tensors:
            logit = tensors.pop("logit")
            if logit.ndim != 2 or example.ndim != 1:
                raise ValueError("the tensor 'logit' should have two dimensions, and 'example' one")
            made = Predictions(example, label, prediction, logit, logit.shape[-1], text=text)
            fits = len(logit) == len(example) and logit.dtype.kind == "f"
        else:
            steps, number = tensors.pop("steps"), tensors.pop("classes")
            if number.shape != (1,) or number.dtype.kind not in "iu" or text is not None:
                raise ValueError("the tensor 'classes' should hold one number, and go without texts")
            classes = int(number[0])
            made = Predictions(example, label, prediction, None, classes, steps, text)
            fits = 2 <= classes <= MOST_CLASSES and steps.dtype == np.uint32 and steps.shape == label.shape
            fits = fits and _are_classes(classes, label, prediction)
    except KeyError as error:
        raise ValueError(f"the tensor {error} is missing") from error
    fits = fits and example.ndim == 1 and example.dtype.kind in "iu" and label.ndim in (1, 2)
    fits = fits and label.shape == prediction.shape and len(label) == len(example)
    fits = fits and {label.dtype.kind, prediction.dtype.kind} <= set("iuf")
    if tensors or not fits or (text is not None and len(text) != len(example)):
        raise ValueError("its tensors do not fit each other, or are not those of predictions")
    return made


def _texts(text: NDArray[Any], ends: NDArray[Any]) -> tuple[str, ...]:
    if ends.ndim != 1:
        raise ValueError("the tensor 'text_ends' should have one dimension")
    content, begins = text.tobytes(), [0, *ends.tolist()[:-1]]
    if ends.dtype.kind not in "iu" or (np.diff(ends, prepend=0) < 0).any():
        raise ValueError("a text ends before it begins")
    return tuple(content[begin:end].decode() for begin, end in zip(begins, ends.tolist(), strict=True))


def compact(whole: Predictions) -> Predictions | None:
    """Converts predictions, which may be compact already, to the compact form.

    Returns None if this is impossible: if there are texts or several classes per example, if a logit is not
    finite, or if an answer is not the class with the largest logit.
    """
    label, prediction, logit = whole.label, whole.prediction, whole.logit
    if logit is None:
        return whole
    classes = logit.shape[1]
    if whole.text is not None or not 2 <= classes <= MOST_CLASSES:
        return None
    if not _are_classes(classes, label, prediction) or not np.isfinite(logit).all():
        return None
    steps = np.round(-log_probabilities(logit, label) / STEP)
    if (_of(logit, prediction) < logit.max(1)).any() or steps.max() > MOST_STEPS:
        return None
    example, label, prediction = (
        np.asarray(values, np.int64) for values in (whole.example, label, prediction)
    )
    return Predictions(example, label, prediction, classes=classes, steps=steps.astype(np.uint32))


def _are_classes(classes: int, *values: NDArray[Any]) -> bool:
    """Whether all values are integers from 0 to `classes` - 1, in arrays (examples,) that are not empty."""
    integers = all(each.ndim == 1 and each.size > 0 and each.dtype.kind in "iu" for each in values)
    return integers and all(0 <= each.min() <= each.max() < classes for each in values)


def log_probabilities(logits: NDArray[Any], labels: Integers) -> NDArray[np.float64]:
    """Returns the log-probability of each example's label (examples,), given logits (examples, classes)."""
    logits = logits.astype(float)
    logits -= logits.max(1, keepdims=True)
    return np.asarray(_of(logits, labels) - np.log(np.exp(logits).sum(1)), dtype=float)


def _of(outputs: NDArray[Any], classes: Integers) -> NDArray[Any]:
    """Returns one output per example: row i of `outputs` (examples, classes) at column `classes[i]`."""
    return np.take_along_axis(outputs, classes[:, None].astype(int), axis=1)[:, 0]


def contradicted(predictions: Predictions) -> int:
    """Counts the answers of compact predictions that contradict the log-probability of the label.

    An answer is the likeliest class. So if the answer is the label, the label has a probability of at least
    1/classes. If the answer is another class, the label has a probability of at most 1/2.
    """
    right = predictions.prediction == predictions.label
    least, most = -np.log(predictions.classes) - STEP / 2, -np.log(2) + STEP / 2
    log_probability = predictions.log_probability
    return int((right & (log_probability < least)).sum() + (~right & (log_probability > most)).sum())
