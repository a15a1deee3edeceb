"""Deals a task's examples into splits, and checks a suite's sizes against them.

Pools and deals are cached, so that plans and trials share them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from tensorbench.machine.cache import is_prepared, prepared
from tensorbench.methods.errors import UserError
from tensorbench.records.measures import SplitSizes
from tensorbench.records.metrics import METRICS
from tensorbench.tasks.dealing import blocks, check_classes, deal, dealt_shares, first_places, strata
from tensorbench.tasks.images import EncodedImages
from tensorbench.tasks.objective import as_labels, as_tensor, check_answers, check_labels, objective
from tensorbench.tasks.reading import (
    identity_of,
    image_content,
    read_examples,
    read_images,
    read_texts,
    text_content,
)
from tensorbench.tasks.task import SPLITS, Examples, SplitName, Task

#: The version of the form in which deals and pools are stored.
_VERSION = 3

#: The numbers of examples to use from train, validation and test. None means all.
Sizes = tuple[int | None, int | None, int | None]

#: The type of hashes of 16 bytes.
CONTENT = "S16"

#: The positions of each split's examples in a pool.
Parts = dict[SplitName, NDArray[np.int64]]


@dataclass(frozen=True)
class Pool:
    """The M examples that are dealt into splits: all but duplicates with different labels.

    - `count`: int64 (), the number of all examples.
    - `kept`: int64 (M,), positions among all examples.
    - `numbers`: int64 (M,), the block of each example (see `dealing.blocks`).
    - `same`: int64 (M,), the first position in the pool at which an example's content occurs.
    - `labels`: (M, …), in the form that `as_tensor` returns.
    - `ids`: int64 (M,), the ids of the examples.
    - `splits`: int64 (M,), official splits as indices into SPLITS. None if the data have no official splits.
    """

    count: NDArray[np.int64]
    kept: NDArray[np.int64]
    numbers: NDArray[np.int64]
    same: NDArray[np.int64]
    labels: NDArray[Any]
    ids: NDArray[np.int64]
    splits: NDArray[np.int64] | None = None


class ExampleSource:
    """A task with its examples and their pool, which are read on first use."""

    def __init__(self, task: Task) -> None:
        self.task = task

    @cached_property
    def examples(self) -> Examples:
        return read_examples(self.task)

    @cached_property
    def contents(self) -> NDArray[np.bytes_]:
        """A hash of 16 bytes per example (N,), equal for duplicates."""
        if self.task.modality == "text":
            texts = read_texts(self.task, self.examples)
            return np.fromiter((text_content(text, self.task.rules) for text in texts), CONTENT)
        return np.fromiter(map(image_content, read_images(self.task, self.examples)), CONTENT)

    @cached_property
    def pool(self) -> Pool:
        """The task's pool. It is cached. Raises UserError for examples that cannot be read or dealt."""

        def build(folder: Path) -> None:
            of = self.examples
            kept, numbers = blocks(self.task, of.labels, self.contents, of.groups, of.splits)
            arrays = {"kept": kept, "numbers": numbers, "same": first_places(self.contents[kept])}
            arrays["count"] = np.array(len(of.labels))
            arrays["labels"] = as_tensor(self.task, list(of.labels)).numpy()[kept]
            arrays["ids"] = np.asarray(of.ids, np.int64)[kept]
            if of.splits is not None:
                arrays["splits"] = np.array([SPLITS.index(of.splits[i]) for i in kept])
            (folder / "pool.safetensors").write_bytes(save(arrays))

        folder = prepared(f"pool-{self.task.name}", _key(self.task), build)
        return Pool(**load_file(folder / "pool.safetensors"))

    def deal(self, seed: int | None) -> Parts:
        """Deals the splits of a seed. None means the deal that all seeds share, which is cached.

        Raises UserError for examples that cannot be read, and the errors of `dealing.deal`.
        """
        pool, official = self.pool, None
        if pool.splits is not None:
            official = [SPLITS[code] for code in pool.splits.tolist()]

        def dealt(labels: list[Any]) -> Parts:
            return deal(self.task, labels, pool.ids, pool.ids, pool.numbers, official, seed)

        def build(folder: Path) -> None:
            # Not the pool's labels, since float32 may join targets that differ.
            parts = dealt([self.examples.labels[i] for i in pool.kept])
            arrays = {str(split): part for split, part in parts.items()}
            (folder / "deal.safetensors").write_bytes(save(arrays))

        if seed is not None:
            return dealt(as_labels(self.task, torch.from_numpy(pool.labels)))
        folder = prepared(f"deal-{self.task.name}", _deal_key(self.task), build)
        parts = load_file(folder / "deal.safetensors")
        return {split: parts[split] for split in SPLITS}

    def parts(self, sizes: Sizes, seed: int | None) -> Parts:
        """Returns the first examples of each split, by `sizes`.

        Raises UserError for a size beyond a split, and the errors of `deal`.
        """
        parts = self.deal(seed)
        for (split, part), size in zip(parts.items(), sizes, strict=True):
            check_size(self.task, split, size, len(part), seed)
            parts[split] = part[:size]
        return parts

    def split_sizes(self, parts: Parts) -> SplitSizes:
        """Returns the sizes of these parts, and how many examples are in two of them or in none."""
        train, validation, test = (self.pool.same[parts[split]] for split in SPLITS)
        pairs = ((test, train), (validation, train), (test, validation))
        repeated, *others = (int(np.isin(part, other).sum()) for part, other in pairs)
        left_out = int(self.pool.count) - len(self.pool.kept)
        return SplitSizes(len(train), len(validation), len(test), repeated, left_out, *others)


def _key(task: Task) -> dict[str, Any]:
    return {"task": task.name, "task_identity": identity_of(task), "version": _VERSION}


def _deal_key(task: Task) -> dict[str, Any]:
    # `every_class` affects only whether a split is refused, so it does not enter the task's identity.
    return _key(task) | {"every_class": task.every_class}


def _is_pooled(task: Task) -> bool:
    """Whether the cache has the task's examples."""
    return is_prepared(f"pool-{task.name}", _key(task))


def _is_dealt(task: Task) -> bool:
    """Whether the cache has the task's examples and the deal that all seeds share."""
    return _is_pooled(task) and is_prepared(f"deal-{task.name}", _deal_key(task))


def check_use(task: Task, sizes: Sizes, seeds: tuple[int | None, ...]) -> None:
    """Raises UserError for sizes and splits that the data do not allow.

    Data that are not on this machine are checked only by the task's declared sizes. `seeds` are the seeds
    that deal their own splits. None among them means the split that all seeds share.
    """
    for split, size, available in zip(SPLITS, sizes, task.sizes or (), strict=False):
        check_size(task, split, size, available)
    for split, size, share in zip(SPLITS, sizes, task.redealt or (), strict=False):
        # Blocks are never separated, so a split may slightly exceed its share.
        if task.total and size is not None and size > task.total * share * 11 // 1000:
            raise UserError(
                f"{split}_size must be at most {task.total * share // 100} or so, {share} % of the "
                f"{task.total} examples of task '{task.name}', got {size}"
            )
    # Finding duplicate images requires decoding all of them, which a plan does only if sizes are given.
    if task.at_hand:
        _check_data(task, sizes, seeds if task.modality == "text" or any(sizes) else ())


def split_count(task: Task, split: SplitName) -> int | None:
    """Returns the number of examples in a split that all seeds share. None if it is not known.

    Without declared sizes, the number is known only for texts on this machine, and for tasks that have been
    prepared. Other images would all have to be decoded first. Raises UserError for data that cannot be split.
    """
    if task.sizes is not None:
        return task.sizes[SPLITS.index(split)]
    countable = (task.at_hand and task.modality == "text") or _is_dealt(task)
    return _dealt_counts(task)[split] if countable else None


def most_train_examples(task: Task) -> int | None:
    """Returns a number that the train split cannot exceed, whichever examples are duplicates.

    None if the examples are not on this machine. Raises UserError for examples that cannot be read.
    """
    return _most_train_examples(task) if task.at_hand else None


@lru_cache(maxsize=32)
def _most_train_examples(task: Task) -> int:
    examples = read_examples(task)
    return len(examples.labels) if examples.splits is None else list(examples.splits).count("train")


@lru_cache(maxsize=32)
def _dealt_counts(task: Task) -> dict[SplitName, int]:
    return {split: len(part) for split, part in ExampleSource(task).deal(None).items()}


@lru_cache(maxsize=32)
def _check_data(task: Task, sizes: Sizes, seeds: tuple[int | None, ...]) -> None:
    """Raises UserError for splits smaller than `sizes`, and for labels that cannot be scored or learned.

    Without seeds, raises UserError for an image that cannot be read, for official splits whose labels cannot
    be scored, and for classes that no deal gives to every split. Successful checks are cached, since several
    rows of a plan may have the same splits.
    """
    source = ExampleSource(task)

    def check(folder: Path) -> None:
        of = source.examples
        dealt_shares(task, of.splits)
        if of.splits is not None:
            parts, official = strata(task, of.labels), np.array(of.splits)
            labels = as_tensor(task, list(of.labels))
            for split in SPLITS:
                if len(positions := np.flatnonzero(official == split)):
                    check_classes(task, split, positions, parts)
                    check_scored(task, split, labels[positions])
        elif task.target == "single label" and of.groups is None:
            # Which images are duplicates is unknown, but a block of duplicates has one class. So if no split
            # lacks a class with duplicates, none does without them.
            deal(task, of.labels, of.ids, of.ids, None)
        if isinstance(of.inputs, EncodedImages):
            of.inputs.check()

    if not seeds:
        prepared(f"checked-{task.name}", _deal_key(task), check)
    for seed in seeds:
        for split, part in source.parts(sizes, seed).items():
            labels = torch.from_numpy(source.pool.labels[part])
            if task.target == "regression" and split == "train":
                objective(task).standardised(task.name, labels)
            elif task.target == "generation" and split != "train":
                answers = [str(source.examples.labels[i]) for i in source.pool.kept[part]]
                check_answers(task, split, answers, source.pool.ids[part].tolist())
            else:
                check_scored(task, split, labels)


def check_scored(task: Task, split: SplitName, labels: torch.Tensor) -> None:
    """Raises UserError if `labels` of a validation or test split cannot be scored."""
    if split != "train":
        check_labels(task, split, labels)
        check_variation(task, split, labels)


def check_variation(task: Task, split: str, labels: torch.Tensor) -> None:
    """Raises UserError if the task's metric needs targets that differ, and those of a split are all equal."""
    if METRICS.get(task.metric).varied and labels.min() == labels.max():
        raise UserError(
            f"task '{task.name}': metric '{task.metric}' needs targets that differ; those of the {split} "
            f"split as it is used ({len(labels):,}) are all {labels[0].item():g}: raise {split}_size, or use "
            "another metric"
        )


def check_size(task: Task, split: str, size: int | None, available: int, seed: int | None = None) -> None:
    """Raises UserError unless `size` is from 1 to `available`, the size of the whole split.

    A size of None is accepted and means the whole split. If a seed deals this split for itself, give it as
    `seed`, for the message.
    """
    if size is not None and not 1 <= size <= available:
        by = "" if seed is None else f" as seed {seed} deals it"
        raise UserError(
            f"{split}_size must be from 1 to {available}, "
            f"the size of the {split} split of task '{task.name}'{by}, got {size}"
        )


def mean_words(task: Task, at_most: float) -> float | None:
    """Returns the mean number of words in the task's texts, counting both texts of a pair.

    A text counts as at most `at_most` words, since a longer one is cut. The first thousand texts are counted.
    None for images, for written answers, and if the texts are not on this machine.
    """
    if task.modality != "text" or task.target == "generation":
        return None
    if not (task.at_hand or _is_pooled(task)):
        return None
    texts = islice(read_texts(task, read_examples(task)), 1000)
    counts = (len(" ".join([text] if isinstance(text, str) else text).split()) for text in texts)
    return fmean(min(count, at_most) for count in counts)


def split_sizes(task: Task, sizes: Sizes, split_seed: int | None) -> SplitSizes | None:
    """Returns how many examples of each split are used, repeat others, and are left out of all splits.

    `split_seed` is the seed that deals the splits. None means the deal that all seeds share. Returns None if
    the task has not been prepared, so that the cache lacks its data.
    """
    at_hand = _is_dealt(task) if split_seed is None else _is_pooled(task)
    source = ExampleSource(task)
    return source.split_sizes(source.parts(sizes, split_seed)) if at_hand else None
