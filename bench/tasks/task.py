"""The interface of a task: its examples, their labels and their source."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from bench.inputs import Modality
from bench.machine.hub import Lockable
from bench.metrics.metric import Kind
from methods.errors import UserError, shown

SplitName = Literal["train", "validation", "test"]

#: The version of `bench.tasks.dealing` and `bench.tasks.preparing`, incremented when results change.
PREPARATION_VERSION = 1

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


class DataSource(Lockable):
    """The source of a hub task's data: another repository or revision, or a folder."""

    #: A folder with the repository's parquet files under the same names.
    local: Path | None = None
    #: Another repository with the same columns.
    hub: str | None = None
    #: A branch, tag or commit of the repository. None: the main branch.
    revision: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.local is not None and (self.hub is not None or self.revision is not None):
            raise ValueError("a source is a local folder, or a hub repository and its revision, not both")
        return self


class LazyImages(Sequence[NDArray[np.uint8]]):
    """RGB images as arrays (height, width, 3). `decode` makes each from its item on access."""

    def __init__(self, items: Sequence[Any], decode: Callable[[Any], NDArray[np.uint8]]) -> None:
        self.items, self._decode = items, decode

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...

    @overload
    def __getitem__(self, index: slice) -> LazyImages: ...

    def __getitem__(self, index: int | slice) -> NDArray[np.uint8] | LazyImages:
        if isinstance(index, slice):
            return LazyImages(self.items[index], self._decode)
        return self._decode(self.items[index])


@dataclass(frozen=True)
class Examples:
    """A task's raw examples, in a fixed order.

    `inputs`: all strings, all tuples of two strings, or RGB images as uint8 arrays (height, width, 3), in a
    list or in a lazy sequence such as `LazyImages`.
    `labels`: class indices, tuples of them (multi-label), numbers (regression) or answers (generation).
    `ids`: integers that identify the examples in their source permanently. `groups`: equal keys for examples
    that no split may separate, such as near-duplicates or parts of one review; None without such groups.
    Exact duplicates need no key. `splits`: the official split of each example; None if the splits are ours
    to deal. Raises UserError for fields of different lengths, and for repeated ids.
    """

    inputs: Sequence[str] | Sequence[tuple[str, str]] | Sequence[NDArray[np.uint8]]
    labels: Sequence[int] | Sequence[tuple[int, ...]] | Sequence[float] | Sequence[str]
    ids: Sequence[int]
    groups: Sequence[Hashable] | None = None
    splits: Sequence[SplitName] | None = None

    def __post_init__(self) -> None:
        sizes = {"inputs": len(self.inputs), "labels": len(self.labels), "ids": len(self.ids)}
        if self.groups is not None:
            sizes["groups"] = len(self.groups)
        if self.splits is not None:
            sizes["splits"] = len(self.splits)
        if len(set(sizes.values())) > 1:
            raise UserError(f"a task's examples must agree in number, got {sizes}")
        if not isinstance(self.ids, range) and len(set(self.ids)) < len(self.ids):
            raise UserError("a task's example ids must be unique")


class Task(ABC):
    """Data, their labels, and how they are scored. To add one, write a subclass in a file of its own::

        class Flowers(Task):
            name = "flowers"
            modality = "vision"
            classes = ("rose", "tulip")
            data_hash = "5b0c…"          # of the data's files, stated so that no download is needed
            description = "Photographs of two flowers"
            license = "CC0-1.0"

            def examples(self) -> Examples:
                return Examples(inputs=…, labels=…, ids=range(…))


        FLOWERS = Flowers()

    and name the instance in `bench.tasks.TASKS`, or in your package's entry-point group `tensorbench.tasks`.
    Splitting, subsets, tokenising, resizing and caching are shared.

    `metric` is the name of a metric, such as "accuracy" or "matthews" (Matthews' correlation, for uneven
    classes); plug-ins add more in `tensorbench.metrics`. `target` is "single label", "multi-label",
    "regression" (no classes) or "generation" (a decoder writes an answer to each input, a prompt). Increment
    `version` when `examples`, `fractions` or the label rule change: with `data_hash` it identifies the
    prepared data and enters every trial's id. `fractions` are the percentages of train, validation and test,
    or of train and validation if the test split is official. `sizes` are the sizes of the splits, if they can
    be stated before anything is downloaded.
    """

    name: str
    modality: Modality
    classes: tuple[str, ...] = ()
    target: Kind = "single label"
    #: Whether the task's texts are pairs. None if known only from the examples.
    paired: bool | None = None
    #: The unit of a regression's targets.
    unit: str = ""
    #: For generation: whether the loss includes the prompt's tokens, the largest number of tokens of an
    #: answer, and the phrases that precede its final part (see `bench.tasks.objective.extracted`).
    loss_on: Literal["answer", "all"] = "answer"
    new_tokens: int = 64
    answer_after: tuple[str, ...] = ()
    metric: str = "accuracy"
    data_hash: str
    version: int = 1
    description: str
    license: str
    fractions: tuple[int, int, int] = (70, 15, 15)
    #: A suite's percentages, which replace the task's own.
    redealt: tuple[int, int, int] | None = None
    #: Whether a split without examples of some class is refused.
    every_class: bool = True
    sizes: tuple[int, int, int] | None = None
    #: The total number of examples, if a suite changes the fractions of a task with `sizes`.
    total: int | None = None
    #: The version of the rules in `bench.tasks.dealing` for duplicates and splits. Registered tasks keep
    #: version 1, with which results were published; described data use version 2.
    rules: Literal[1, 2] = 1
    #: Whether the task's examples are on this machine, where a plan can check them.
    at_hand: bool = False

    @abstractmethod
    def examples(self) -> Examples:
        """All examples, downloaded if necessary. Raises UserError if they are not available."""

    @property
    def outputs(self) -> int:
        """The number of outputs of the head."""
        return {"regression": 1, "generation": 3}.get(self.target, len(self.classes))

    def at(self, source: DataSource) -> Task:
        """The same task with another data source. Raises UserError if it has only one source."""
        raise UserError(f"task '{self.name}' brings its own data and takes no source")

    def altered(self, fractions: tuple[int, int, int] | None, metric: str | None) -> Task:
        """The task with other percentages of train, validation and test, or another metric.

        None keeps the task's own. Another value changes the task's identity.
        """
        task = copy(self)
        if fractions is not None:
            task.fractions = task.redealt = fractions
            task.total = self.total if self.sizes is None else sum(self.sizes)
            task.sizes = None
        task.metric = metric or self.metric
        return task

    def shares(self, official: Collection[SplitName]) -> tuple[int, int, int]:
        """The percentages of train, validation and test if the `official` splits are given."""
        return self.fractions

    def pinned(self) -> DataSource | None:
        """The source of exactly the data that `data_hash` identifies. None for a task with one source."""
        return None

    def identity_hash(self) -> str:
        """A hash of data, labels, splits, preparation and metric, computed without reading the examples.

        Raises UserError for a `data_hash` that is not a text or cannot be computed.
        """
        data_hash = self.data_hash
        if not isinstance(data_hash, str) or not data_hash:
            raise UserError(f"task '{self.name}': data_hash should be a text, got {shown(data_hash)}")
        parts = [self.name, data_hash, str(self.version), str(PREPARATION_VERSION)]
        # Accuracy was the first metric, and trials with it keep their ids.
        parts += [self.metric] if self.metric != "accuracy" else []
        parts += [self.target] if self.target != "single label" else []
        parts += [f"fractions {self.redealt}"] if self.redealt else []
        if self.target == "generation":
            parts += [self.loss_on, str(self.new_tokens), *self.answer_after]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()
