"""What a task is: its examples, their labels and where they come from."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from bench.inputs import Modality
from bench.metrics.base import Kind
from bench.sources.hub import Lockable
from methods.errors import UserError, shown

SplitName = Literal["train", "validation", "test"]

#: Grows whenever `bench.tasks.dealing` or `bench.tasks.data` treats the same examples differently.
PREPARATION_VERSION = 1

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


class DataSource(Lockable):
    """Where a hub task's data come from: another hub repository, another revision, or a folder."""

    #: A folder that holds the repository's parquet files under their names there.
    local: Path | None = None
    #: Another repository, whose data have the same columns.
    hub: str | None = None
    #: A branch, tag or commit of the repository; None is the main branch.
    revision: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.local is not None and (self.hub is not None or self.revision is not None):
            raise ValueError("a source is a local folder, or a hub repository and its revision, not both")
        return self


class LazyImages(Sequence[NDArray[np.uint8]]):
    """RGB images as arrays (height, width, 3), each made from its item by `decode` when it is indexed."""

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


class Streamed(Sequence[Any]):
    """Inputs that are read anew, one after the other, whenever they are gone through.

    So no more of them is in memory than `read` holds. One of them alone is found by reading those before it.
    """

    def __init__(self, count: int, read: Callable[[], Iterator[Any]]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        return self._read()

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return list(self._read())[index]
        return next(islice(self._read(), range(self._count)[index], None))


@dataclass(frozen=True)
class Examples:
    """A task's raw examples, in any order that is the same every time.

    `inputs`: all strings, all tuples of two strings, or RGB images as uint8 arrays (height, width, 3); a lazy
    sequence that reads them whenever it is gone through will do, such as `LazyImages` and `Streamed`.
    `labels`: indices into the task's classes; where an example may have several, a tuple of them for each; of
    a regression numbers, of a generation the right answers.
    `ids`: integers that name the examples in their source for good. `groups`: examples that must not be
    parted by the split (near-duplicates, the same review, the same place) have equal keys; None where there
    are none. Exact duplicates need no key: they are found and kept together in any case. `splits`: which
    official split an example belongs to; None where there are none and all splits are ours to deal.
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
            data_hash = "5b0c…"          # of the data's files: known without having them
            description = "Photographs of two flowers"
            license = "CC0-1.0"

            def examples(self) -> Examples:
                return Examples(inputs=…, labels=…, ids=range(…))


        FLOWERS = Flowers()

    and name the instance in `bench.tasks.TASKS`, or in your package's entry-point group `tensorbench.tasks`.
    Splitting, subsets, tokenising, resizing and caching are shared and come with it.

    `metric` is the name of a metric, such as "accuracy" or "matthews" (Matthews' correlation, for uneven
    classes); `tensorbench.metrics` is where plug-ins add some. `target` is "single label", "multi-label" or
    "regression", which has no classes, or "generation": a decoder writes an answer to each input, a prompt.
    `version` must grow when `examples`, `fractions` or the label rule change: with `data_hash` it names the
    prepared data and enters every trial's id. `fractions` are the percentages of train, validation and
    test; where the test split is official, those of train and validation. `sizes`, if given, are the
    splits' true sizes, known before anything is downloaded.
    """

    name: str
    modality: Modality
    classes: tuple[str, ...] = ()
    target: Kind = "single label"
    #: Whether its texts are pairs; None where only the examples tell.
    paired: bool | None = None
    #: What the targets of a regression are counted in.
    unit: str = ""
    #: Of a generation: whether the answer's tokens are trained on or the prompt's too, how many tokens an
    #: answer may have, and what stands before the part of it that counts (see `bench.tasks.extraction`).
    loss_on: Literal["answer", "all"] = "answer"
    new_tokens: int = 64
    answer_after: tuple[str, ...] = ()
    metric: str = "accuracy"
    data_hash: str
    version: int = 1
    description: str
    license: str
    fractions: tuple[int, int, int] = (70, 15, 15)
    #: The percentages that a suite asks for in place of the task's own.
    redealt: tuple[int, int, int] | None = None
    #: Whether a split without an example of some class is refused.
    every_class: bool = True
    sizes: tuple[int, int, int] | None = None
    #: How many examples all splits have together, where a suite deals those of known `sizes` anew.
    total: int | None = None
    #: By which rules its examples are told apart and dealt, as `bench.tasks.dealing` has them. Registered
    #: tasks keep the first ones, by which results are published; described data have the second.
    rules: Literal[1, 2] = 1
    #: Whether its examples are on this machine, so that a plan can look at them.
    at_hand: bool = False

    @abstractmethod
    def examples(self) -> Examples:
        """All examples, fetched if need be. Raises UserError if they cannot be had."""

    @property
    def outputs(self) -> int:
        """How many outputs the head has."""
        return {"regression": 1, "generation": 3}.get(self.target, len(self.classes))

    def at(self, source: DataSource) -> Task:
        """The same task with its data from elsewhere. Raises UserError where there is only one place."""
        raise UserError(f"task '{self.name}' brings its own data and takes no source")

    def altered(self, fractions: tuple[int, int, int] | None, metric: str | None) -> Task:
        """The same examples, dealt by other percentages of train, validation and test, and scored by another
        metric, where these are given: a task with another identity.
        """
        task = copy(self)
        if fractions is not None:
            task.fractions = task.redealt = fractions
            task.total = self.total if self.sizes is None else sum(self.sizes)
            task.sizes = None
        task.metric = metric or self.metric
        return task

    def shares(self, official: Collection[SplitName]) -> tuple[int, int, int]:
        """The percentages of train, validation and test, where these splits are official."""
        return self.fractions

    def pinned(self) -> DataSource | None:
        """The source of exactly the data that `data_hash` names; None where there is only one place."""
        return None

    def identity_hash(self) -> str:
        """Names data, labels, splits, preparation and metric for good; known without having the data.

        Raises UserError for a `data_hash` that is no text, or cannot be known.
        """
        data_hash = self.data_hash
        if not isinstance(data_hash, str) or not data_hash:
            raise UserError(f"task '{self.name}': data_hash should be a text, got {shown(data_hash)}")
        parts = [self.name, data_hash, str(self.version), str(PREPARATION_VERSION)]
        # Accuracy was there before any other metric, and its trials keep their ids.
        parts += [self.metric] if self.metric != "accuracy" else []
        parts += [self.target] if self.target != "single label" else []
        parts += [f"fractions {self.redealt}"] if self.redealt else []
        if self.target == "generation":
            parts += [self.loss_on, str(self.new_tokens), *self.answer_after]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()
