"""Reads a task's examples and checks them against its attributes. Errors about an example name its row."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tensorbench.methods.errors import UserError, shown
from tensorbench.tasks.dealing import normalise_text, normalise_text_2
from tensorbench.tasks.registered_tasks import TASKS
from tensorbench.tasks.task import SPLITS, Examples, Task

Value = TypeVar("Value")

#: The largest accepted rounding error of regression targets, relative to their standard deviation.
ROUNDED = 1e-4


def identity_of(task: Task) -> str:
    """Returns `task.identity_hash()`. Its errors name the task's plug-in."""
    with TASKS.blaming(task.name):
        return task.identity_hash()


def read_examples(task: Task) -> Examples:
    """Returns the task's examples with checked labels, ids, splits and groups.

    The inputs are checked only when `read_texts` or `read_images` reads them. Numpy's numbers are converted
    to Python's. Raises UserError for a task without examples, for an invalid label, id, split or group, and
    for regression targets that float32 cannot represent.
    """
    with TASKS.blaming(task.name):
        examples = task.examples()
        if not isinstance(examples, Examples):
            raise UserError(
                f"task '{task.name}': examples() should return Examples, got a {type(examples).__name__}"
            )
        if not len(examples.inputs):
            raise UserError(f"task '{task.name}': it has no examples")
        groups, splits = (() if keys is None else keys for keys in (examples.groups, examples.splits))
        _check(task, "group", groups, hash, "groups are keys, such as texts and numbers")
        _check(task, "split", splits, SPLITS.index, f"splits are {', '.join(SPLITS)}")
        labels = _check(task, "label", examples.labels, *_label(task))
        if task.target == "regression":
            _check_rounding(task, labels)
        ids = examples.ids
        if not isinstance(ids, range):
            ids = _check(task, "id", ids, _integer(-(2**63), 2**63), "ids are whole numbers of 64 bits")
        return replace(examples, labels=labels, ids=ids)


def read_texts(task: Task, examples: Examples) -> Iterator[Any]:
    """Yields the texts or pairs of texts.

    Raises UserError unless all are strings or, except for generation, all are tuples of two strings.
    """
    paired = isinstance(examples.inputs[0], tuple) and task.target != "generation"
    accepted = "texts are all strings, or all tuples of two strings"
    with TASKS.blaming(task.name):
        for row, text in enumerate(examples.inputs):
            yield _read(task, "text", row, text, _pair if paired else _string, accepted)


def read_images(task: Task, examples: Examples) -> Iterator[NDArray[np.uint8]]:
    """Yields the images. Raises UserError unless each is a uint8 array (height, width, 3)."""
    with TASKS.blaming(task.name):
        for row, value in enumerate(examples.inputs):
            image = np.asarray(value)
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise UserError(
                    f"task '{task.name}': images must be uint8 (height, width, 3), "
                    f"that of row {row} (id {examples.ids[row]}) is {image.dtype} {image.shape}"
                )
            yield image


def text_content(text: str | tuple[str, str], rules: Literal[1, 2]) -> bytes:
    """Returns a hash of 16 bytes, equal for texts or pairs of texts that are duplicates by `Task.rules`."""
    normalise = normalise_text if rules == 1 else normalise_text_2
    shared = "\0".join(map(normalise, text if isinstance(text, tuple) else (text,)))
    return hashlib.sha256(shared.encode("utf-8", "surrogatepass")).digest()[:16]


def image_content(image: NDArray[np.uint8]) -> bytes:
    """Returns a hash of 16 bytes, equal for images with the same pixels."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()[:16]


def _check(
    task: Task, what: str, values: Iterable[Any], read: Callable[[Any], Value], accepted: str
) -> list[Value]:
    """Applies `read` to every value. If it raises TypeError or ValueError, raises UserError for that row."""
    return [_read(task, what, row, value, read, accepted) for row, value in enumerate(values)]


def _read(task: Task, what: str, row: int, value: Any, read: Callable[[Any], Value], accepted: str) -> Value:
    try:
        return read(value)
    except (TypeError, ValueError) as error:
        kind = type(value).__name__
        raise UserError(
            f"task '{task.name}': the {what} of row {row} is {shown(value)} ({kind}); {accepted}"
        ) from error


def _label(task: Task) -> tuple[Callable[[Any], Any], str]:
    """Returns a function that checks and converts a label, and a description of the accepted labels."""
    if task.target == "regression":
        return _number, "targets are finite numbers"
    if task.target == "generation":
        return _string, "answers are texts"
    read, accepted = _integer(0, len(task.classes)), f"whole numbers from 0 to {len(task.classes) - 1}"
    if task.target == "multi-label":
        return lambda labels: tuple(
            sorted({read(label) for label in labels})
        ), f"labels are tuples of {accepted}"
    return read, f"labels are {accepted}"


def _number(value: Any) -> float:
    if isinstance(value, (str, bool)) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _check_rounding(task: Task, labels: list[float]) -> None:
    """Raises UserError for targets that float32, used for training and scores, cannot represent."""
    targets = np.array(labels)
    with np.errstate(over="ignore"):
        rounded = targets.astype(np.float32).astype(np.float64)
    if len(beyond := np.flatnonzero(~np.isfinite(rounded))):
        raise UserError(
            f"task '{task.name}': the target of row {beyond[0]} is {targets[beyond[0]]:g}; targets are "
            f"numbers up to {np.finfo(np.float32).max:.1e}: use a larger unit"
        )
    spread, off = targets.std(), np.abs(rounded - targets).max()
    if off > ROUNDED * spread > 0:
        raise UserError(
            f"task '{task.name}': its targets are around {targets.mean():g} and spread by {spread:g}, which "
            f"float32 rounds by up to {off:g}; take the same number from all of them, such as "
            f"{math.floor(targets.min())}"
        )


def _integer(least: int, beyond: int) -> Callable[[Any], int]:
    """Returns a function that converts an integer of Python or numpy to `int`.

    The function raises TypeError for other types, and ValueError unless `least` <= value < `beyond`.
    """

    def read(value: Any) -> int:
        number = operator.index(value)
        if not least <= number < beyond:
            raise ValueError
        return number

    return read


def _string(text: Any) -> str:
    """Converts a string of Python or numpy to `str`. Raises TypeError for other types."""
    if not isinstance(text, str):
        raise TypeError
    return str(text)


def _pair(text: Any) -> tuple[str, str]:
    if not isinstance(text, tuple):
        raise TypeError
    first, second = text
    return _string(first), _string(second)
