"""Deals a task's examples into splits, and checks a suite's sizes against them.

Deals are computed once and cached, so that plans and trials share them.
"""

from __future__ import annotations

from collections.abc import Iterable
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
from tensorbench.metrics import METRICS
from tensorbench.records.measures import SplitSizes
from tensorbench.tasks.dealing import blocks, deal, first_places
from tensorbench.tasks.images import EncodedImages
from tensorbench.tasks.objective import as_labels, as_tensor, check_answers, check_labels, objective
from tensorbench.tasks.reading import image_content, read_examples, read_images, read_texts, text_content
from tensorbench.tasks.task import SPLITS, Examples, SplitName, Task

#: The version of the form in which deals and pools are stored.
_VERSION = 1

#: The numbers of examples to use from train, validation and test. None means all.
Sizes = tuple[int | None, int | None, int | None]


class ExampleSource:
    """A task and its examples, which are read on first use."""

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
            return as_contents(text_content(text, self.task.rules) for text in texts)
        return as_contents(map(image_content, read_images(self.task, self.examples)))


def as_contents(digests: Iterable[bytes]) -> NDArray[np.bytes_]:
    """Converts N hashes of 16 bytes to an array (N,)."""
    return np.fromiter(digests, dtype="S16")


def dealt(source: ExampleSource) -> dict[SplitName, NDArray[np.int64]]:
    """Returns the positions of each split's examples in the deal that all seeds share. The deal is cached.

    Raises UserError for examples that cannot be read, and as `dealing.deal` does.
    """

    def build(folder: Path) -> None:
        of = source.examples
        dealt_parts = deal(source.task, of.labels, of.ids, source.contents, of.groups, of.splits)
        parts = {str(split): chosen for split, chosen in dealt_parts.items()}
        (folder / "deal.safetensors").write_bytes(save(parts))

    folder = prepared(f"deal-{source.task.name}", _deal_key(source.task), build)
    same_contents(source)
    parts = load_file(folder / "deal.safetensors")
    return {split: parts[split] for split in SPLITS}


def same_contents(source: ExampleSource) -> dict[str, NDArray[np.int64]]:
    """Returns which of a task's N examples have the same content, as two int64 arrays (N,). They are cached.

    `ids` has the id of each example. `same` has the first position at which its content occurs. Raises
    UserError for examples that cannot be read.
    """

    def build(folder: Path) -> None:
        arrays = {"ids": np.asarray(source.examples.ids, np.int64), "same": first_places(source.contents)}
        (folder / "contents.safetensors").write_bytes(save(arrays))

    folder = prepared(f"contents-{source.task.name}", _key(source.task), build)
    return load_file(folder / "contents.safetensors")


def contents_at_hand(task: Task, *, per_seed: bool | None = None) -> bool:
    """Whether the cache has the result of `same_contents` for a task.

    If `per_seed` is True, the cache must also have the task's pool. If it is False, the cache must also have
    the deal that all seeds share.
    """
    keys = {f"contents-{task.name}": _key(task)}
    if per_seed is not None:
        keys |= {f"pool-{task.name}": _key(task)} if per_seed else {f"deal-{task.name}": _deal_key(task)}
    return all(is_prepared(kind, key) for kind, key in keys.items())


@dataclass(frozen=True)
class Pool:
    """The M examples from which each seed deals its own splits.

    - `kept`: int64 (M,), positions among all examples.
    - `numbers`: int64 (M,), the block of each example (see `dealing.blocks`).
    - `labels`: (M, …), in the form that `as_tensor` returns.
    - `ids`: int64 (M,), the ids of the examples.
    - `splits`: int64 (M,), official splits as indices into SPLITS. None if the data have no official splits.
    """

    kept: NDArray[np.int64]
    numbers: NDArray[np.int64]
    labels: NDArray[Any]
    ids: NDArray[np.int64]
    splits: NDArray[np.int64] | None

    def deal(self, task: Task, seed: int) -> dict[SplitName, NDArray[np.int64]]:
        """Deals the splits of `seed`. Returns the positions of each split's examples in this pool.

        Raises UserError as `dealing.deal` does.
        """
        labels = as_labels(task, torch.from_numpy(self.labels))
        splits = None if self.splits is None else [SPLITS[code] for code in self.splits.tolist()]
        return deal(task, labels, self.ids, self.ids, self.numbers, splits, seed)


def pool_of(source: ExampleSource) -> Pool:
    """Returns the pool of a task. It is cached. Raises UserError for examples that cannot be read."""

    def build(folder: Path) -> None:
        of = source.examples
        kept, numbers = blocks(of.labels, source.contents, of.groups, of.splits)
        labels = as_tensor(source.task, list(of.labels)).numpy()[kept]
        arrays = {"kept": kept, "numbers": numbers, "labels": labels, "ids": np.asarray(of.ids)[kept]}
        if of.splits is not None:
            arrays["splits"] = np.array([SPLITS.index(of.splits[i]) for i in kept])
        (folder / "pool.safetensors").write_bytes(save(arrays))

    arrays = load_file(prepared(f"pool-{source.task.name}", _key(source.task), build) / "pool.safetensors")
    same_contents(source)
    return Pool(arrays["kept"], arrays["numbers"], arrays["labels"], arrays["ids"], arrays.get("splits"))


def _key(task: Task) -> dict[str, Any]:
    return {"task": task.name, "task_identity": task.identity_hash(), "version": _VERSION}


def _deal_key(task: Task) -> dict[str, Any]:
    # `every_class` affects only whether a split is refused, so it does not enter the task's identity.
    return _key(task) | {"every_class": task.every_class}


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
    if not task.at_hand:
        return
    # Finding duplicate images requires decoding all of them, which a plan does only if sizes are given.
    if task.modality == "text" or any(sizes):
        _check_splits(task, sizes, seeds)
    else:
        _check_images(task)


def split_count(task: Task, split: SplitName) -> int | None:
    """Returns the number of examples in a split that all seeds share. None if it is not known.

    Without declared sizes, the number is known only for texts on this machine. Images would all have to be
    decoded first. Raises UserError for data that cannot be split.
    """
    if task.sizes is not None:
        return task.sizes[SPLITS.index(split)]
    return _dealt_counts(task)[split] if task.at_hand and task.modality == "text" else None


@lru_cache(maxsize=32)
def _dealt_counts(task: Task) -> dict[SplitName, int]:
    return {split: len(chosen) for split, chosen in dealt(ExampleSource(task)).items()}


@lru_cache(maxsize=32)
def _check_images(task: Task) -> None:
    """Raises UserError for an image that cannot be read. The cache remembers that a task was checked."""
    source = ExampleSource(task)

    def check(folder: Path) -> None:
        if isinstance(inputs := source.examples.inputs, EncodedImages):
            inputs.check()

    prepared(f"checked-{task.name}", _key(task), check)


@lru_cache(maxsize=32)
def _check_splits(task: Task, sizes: Sizes, seeds: tuple[int | None, ...]) -> None:
    """Raises UserError for splits smaller than `sizes`, and for labels that cannot be scored or learned.

    The result is remembered, since several rows of a plan may have the same splits.
    """
    source = ExampleSource(task)
    for seed in seeds:
        if seed is None:
            parts = dealt(source)
        else:
            pool = pool_of(source)
            parts = {split: pool.kept[chosen] for split, chosen in pool.deal(task, seed).items()}
        for (split, chosen), size in zip(parts.items(), sizes, strict=True):
            check_size(task, split, size, len(chosen), seed)
            if split != "train" and task.target == "generation":
                answers, ids = source.examples.labels, source.examples.ids
                used = chosen[:size].tolist()
                check_answers(task, split, [str(answers[i]) for i in used], [ids[i] for i in used])
            elif task.target == "regression" and split == "train":
                targets = [source.examples.labels[i] for i in chosen[:size]]
                objective(task).standardised(task.name, as_tensor(task, targets))
            elif split != "train" and METRICS.get(task.metric).every_class:
                labels = source.examples.labels
                check_labels(task, split, as_tensor(task, [labels[i] for i in chosen[:size]]))


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


def mean_words(task: Task) -> float | None:
    """Returns the mean number of words in the task's texts, counting both texts of a pair.

    The first thousand texts are counted. None for images, for written answers, and if the texts are not on
    this machine.
    """
    if task.modality != "text" or task.target == "generation":
        return None
    if not (task.at_hand or contents_at_hand(task)):
        return None
    texts = islice(read_texts(task, read_examples(task)), 1000)
    return fmean(len(" ".join([text] if isinstance(text, str) else text).split()) for text in texts)


def split_sizes(task: Task, sizes: Sizes, split_seed: int | None) -> SplitSizes | None:
    """Returns how many examples of each split are used, and how many test examples are also in train.

    `split_seed` is the seed that deals the splits. None means the deal that all seeds share. Returns None if
    the cache lacks what is needed, because the task has not been prepared.
    """
    if not contents_at_hand(task, per_seed=split_seed is not None):
        return None
    source = ExampleSource(task)
    if split_seed is None:
        parts = dealt(source)
    else:
        pool = pool_of(source)
        parts = {split: pool.kept[chosen] for split, chosen in pool.deal(task, split_seed).items()}
    train, validation, test = (part[:size] for part, size in zip(parts.values(), sizes, strict=True))
    repeated = _repeated(same_contents(source)["same"], train, test)
    return SplitSizes(len(train), len(validation), len(test), repeated)


def repeated_tests(task: Task, train: NDArray[np.int64], test: NDArray[np.int64]) -> int | None:
    """Returns the number of test examples that also occur in train. None if the contents are not cached.

    `train` and `test` are ids of examples. Texts are compared after normalisation by `Task.rules`, images by
    their pixels.
    """
    if not contents_at_hand(task):
        return None
    contents = same_contents(ExampleSource(task))
    order = np.argsort(contents["ids"], kind="stable")
    train, test = (order[np.searchsorted(contents["ids"], ids, sorter=order)] for ids in (train, test))
    return _repeated(contents["same"], train, test)


def _repeated(same: NDArray[np.int64], train: NDArray[np.int64], test: NDArray[np.int64]) -> int:
    return int(np.isin(same[test], same[train]).sum())
