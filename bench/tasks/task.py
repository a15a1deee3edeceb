"""The interface of a task: its examples, their labels and their source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from tensorbench.backbones.inputs import Modality
from tensorbench.methods.errors import UserError, shown
from tensorbench.methods.validation import Frozen, hashed
from tensorbench.records.metrics.metric import Kind

SplitName = Literal["train", "validation", "test"]

#: The version of `tensorbench.tasks.dealing` and `tensorbench.tasks.preparing`. Increment it if a change
#: gives a task other splits or other prepared data.
PREPARATION_VERSION = 1

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


class DataSource(Frozen):
    """The source of a hub task's data: a hub repository at a revision, or a local folder.

    If `local` and `hub` are None, the data come from the task's own repository.
    """

    #: A folder with the repository's parquet files under the same names.
    local: Path | None = None
    #: A repository that replaces the task's own. It must have the same columns.
    hub: str | None = None
    #: A branch, tag or commit of the repository. None: the main branch.
    revision: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.local is not None and (self.hub is not None or self.revision is not None):
            raise ValueError("a source is a local folder, or a hub repository and its revision, not both")
        return self


class LazyImages(Sequence[NDArray[np.uint8]]):
    """A sequence of RGB images, uint8 (height, width, 3), each decoded when it is accessed.

    The image at index i is `decode(items[i])`. A slice is a `LazyImages` too.
    """

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
    """A task's raw examples, in a fixed order. Each field has one entry per example.

    - `inputs`: strings, tuples of two strings, or RGB images as uint8 arrays (height, width, 3). All have the
      same type. Images may be in a lazy sequence such as `LazyImages`.
    - `labels`: class indices (single label), tuples of class indices (multi-label), numbers (regression) or
      correct answers (generation).
    - `ids`: integers that identify the examples in their source permanently.
    - `groups`: keys. Examples with equal keys go to the same split, for example the sentences of one review,
      or near-duplicates. Exact duplicates need no key. None if there are no groups.
    - `splits`: the official split of each example. None if the data have no official splits.

    Raises UserError for fields of different lengths, and for repeated ids.
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
    """A data set with labels and a metric. To add a task, write a subclass in a file of its own::

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

    and name the instance in `tensorbench.tasks.TASKS`, or in your package's entry-point group
    `tensorbench.tasks`. Splitting, subsets, tokenising, resizing and caching work for every task.

    - `metric`: the name of a metric, such as "accuracy" or "matthews" (Matthews' correlation, for uneven
      classes). Plug-ins add metrics in the entry-point group "tensorbench.metrics".
    - `target`: "single label", "multi-label", "regression" (no classes) or "generation" (each input is a
      prompt, to which a decoder writes an answer).
    - `version`: increment it when `examples`, `fractions` or the rule for labels change. Together with
      `data_hash` it identifies the prepared data, and both enter every trial's id.
    - `fractions`: the percentages of train, validation and test, which add up to 100. If the test split is
      official, the percentages of train and validation, and 0.
    - `sizes`: the sizes of train, validation and test, if they are known without a download.
    """

    name: str
    modality: Modality
    classes: tuple[str, ...] = ()
    target: Kind = "single label"
    #: Whether the task's texts are pairs. None if only the examples show it.
    paired: bool | None = None
    #: The unit of a regression's targets.
    unit: str = ""
    #: For generation: the tokens that the loss covers, those of the answer or also those of the prompt.
    loss_on: Literal["answer", "all"] = "answer"
    #: For generation: the largest number of tokens that the backbone may write.
    new_tokens: int = 64
    #: For generation: phrases that precede the final part of an answer (see `objective.extracted`).
    answer_after: tuple[str, ...] = ()
    metric: str = "accuracy"
    data_hash: str
    version: int = 1
    description: str
    license: str
    fractions: tuple[int, int, int] = (70, 15, 15)
    #: The fractions that a suite gave instead of the task's own. None if it gave none.
    redealt: tuple[int, int, int] | None = None
    #: Whether a split in which a class has no example is an error.
    every_class: bool = True
    sizes: tuple[int, int, int] | None = None
    #: The total number of examples. Set if a suite changes the fractions of a task that states `sizes`.
    total: int | None = None
    #: The version of the rules for duplicates and splits in `tensorbench.tasks.dealing`. Registered tasks
    #: keep version 1, with which results were published. Data that a suite describes use version 2.
    rules: Literal[1, 2] = 1
    #: Whether the task's examples are on this machine, so that a plan can check them.
    at_hand: bool = False

    @abstractmethod
    def examples(self) -> Examples:
        """Returns all examples, downloaded if necessary. Raises UserError if they are not available."""

    @property
    def outputs(self) -> int:
        """The number of outputs of the backbone per example, in the form that `Objective` describes."""
        return {"regression": 1, "generation": 3}.get(self.target, len(self.classes))

    def at(self, source: DataSource) -> Task:
        """Returns a copy of the task that reads its data from `source`.

        This default raises UserError, for tasks that bring their own data.
        """
        raise UserError(f"task '{self.name}' brings its own data and takes no source")

    def altered(self, fractions: tuple[int, int, int] | None, metric: str | None) -> Task:
        """Returns a copy with other percentages of train, validation and test, or with another metric.

        None keeps the task's own. Any other value changes the task's identity.
        """
        task = copy(self)
        if fractions is not None:
            task.fractions = task.redealt = fractions
            task.total = self.total if self.sizes is None else sum(self.sizes)
            task.sizes = None
        task.metric = metric or self.metric
        return task

    def shares(self, official: Collection[SplitName]) -> tuple[int, int, int]:
        """Returns the percentages of train, validation and test, given the names of the official splits."""
        return self.fractions

    def pinned(self) -> DataSource | None:
        """Returns the source with the exact commit of the data that `data_hash` identifies.

        None for a task that brings its own data.
        """
        return None

    def identity_hash(self) -> str:
        """Returns a hash of everything about the task that affects its splits, labels and scores.

        The examples are not read. Raises UserError for a `data_hash` that is empty, not a text, or cannot be
        computed.
        """
        data_hash = self.data_hash
        if not isinstance(data_hash, str) or not data_hash:
            raise UserError(f"task '{self.name}': data_hash should be a text, got {shown(data_hash)}")
        fields = ["metric", "target", "redealt", "rules"]
        fields += ["loss_on", "new_tokens", "answer_after"] if self.target == "generation" else []
        return hashed(
            {
                "name": self.name,
                "data_hash": data_hash,
                "version": self.version,
                "preparation": PREPARATION_VERSION,
                **{name: own for name in fields if (own := getattr(self, name)) != getattr(Task, name)},
            }
        )
