"""The examples of a task that are dealt into splits: found once and kept, also for plans."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from bench.metrics import METRICS
from bench.sources.assets import is_prepared, prepared
from bench.tasks.base import SPLITS, Examples, SplitName, Task
from bench.tasks.dealing import blocks, deal, first_places
from bench.tasks.objective import as_labels, as_tensor, check_labels
from bench.tasks.reading import image_content, read_examples, read_images, read_texts, text_content
from bench.tasks.written import check_answers
from methods.errors import UserError

#: Grows whenever a deal or a pool is stored otherwise.
_VERSION = 1

#: How many examples of train, validation and test are used; None means all of a split.
Sizes = tuple[int | None, int | None, int | None]


class Source:
    """A task's examples, read when they are first asked for."""

    def __init__(self, task: Task) -> None:
        self.task = task

    @cached_property
    def examples(self) -> Examples:
        return read_examples(self.task)

    @cached_property
    def contents(self) -> NDArray[np.bytes_]:
        """What makes two of the examples duplicates, 16 bytes each."""
        if self.task.modality == "text":
            texts = read_texts(self.task, self.examples)
            return as_contents(text_content(text, self.task.rules) for text in texts)
        return as_contents(map(image_content, read_images(self.task, self.examples)))


def as_contents(digests: Iterable[bytes]) -> NDArray[np.bytes_]:
    return np.fromiter(digests, dtype="S16")


def dealt(source: Source) -> dict[SplitName, NDArray[np.int64]]:
    """The split that all seeds share, from the cache if it is there: as `deal` gives it. Raises UserError."""

    def build(folder: Path) -> None:
        of = source.examples
        found = deal(source.task, of.labels, of.ids, source.contents, of.groups, of.splits)
        parts = {str(split): chosen for split, chosen in found.items()}
        (folder / "deal.safetensors").write_bytes(save(parts))

    found = load_file(
        prepared(f"deal-{source.task.name}", _deal_key(source.task), build) / "deal.safetensors"
    )
    same_contents(source)
    return {split: found[split] for split in SPLITS}


def same_contents(source: Source) -> dict[str, NDArray[np.int64]]:
    """Of each example (N,) the `ids`, and in `same` the position of the first one with the same content.

    From the cache if it is there. Raises UserError for what cannot be read.
    """

    def build(folder: Path) -> None:
        whole = {"ids": np.asarray(source.examples.ids, np.int64), "same": first_places(source.contents)}
        (folder / "contents.safetensors").write_bytes(save(whole))

    folder = prepared(f"contents-{source.task.name}", _key(source.task), build)
    return load_file(folder / "contents.safetensors")


def contents_at_hand(task: Task, *, per_seed: bool | None = None) -> bool:
    """Whether the cache has `same_contents` and, where `per_seed` is given, the pool or the deal."""
    wanted = {f"contents-{task.name}": _key(task)}
    if per_seed is not None:
        wanted |= {f"pool-{task.name}": _key(task)} if per_seed else {f"deal-{task.name}": _deal_key(task)}
    return all(is_prepared(kind, key) for kind, key in wanted.items())


@dataclass(frozen=True)
class Pool:
    """The M examples from which seeds deal, in their order.

    `kept`: int64 (M,), their positions among all. `numbers`: int64 (M,), the blocks that no deal parts.
    `labels` (M, …), as `as_tensor` has them. `splits`: the official split of each, if any.
    """

    kept: NDArray[np.int64]
    numbers: NDArray[np.int64]
    labels: NDArray[Any]
    ids: NDArray[np.int64]
    splits: NDArray[np.int64] | None

    def deal(self, task: Task, seed: int) -> dict[SplitName, NDArray[np.int64]]:
        """As `dealing.deal` does: of each split the positions in the pool. Raises UserError."""
        labels = as_labels(task, torch.from_numpy(self.labels))
        splits = None if self.splits is None else [SPLITS[code] for code in self.splits.tolist()]
        return deal(task, labels, self.ids, self.ids, self.numbers, splits, seed)


def pool_of(source: Source) -> Pool:
    """The pool of a task, from the cache if it is there. Raises UserError for what cannot be read."""

    def build(folder: Path) -> None:
        of = source.examples
        kept, numbers = blocks(of.labels, source.contents, of.groups, of.splits)
        labels = as_tensor(source.task, list(of.labels)).numpy()[kept]
        whole = {"kept": kept, "numbers": numbers, "labels": labels, "ids": np.asarray(of.ids)[kept]}
        if of.splits is not None:
            whole["splits"] = np.array([SPLITS.index(of.splits[i]) for i in kept])
        (folder / "pool.safetensors").write_bytes(save(whole))

    found = load_file(prepared(f"pool-{source.task.name}", _key(source.task), build) / "pool.safetensors")
    same_contents(source)
    return Pool(found["kept"], found["numbers"], found["labels"], found["ids"], found.get("splits"))


def _key(task: Task) -> dict[str, Any]:
    return {"task": task.name, "task_identity": task.identity_hash(), "version": _VERSION}


def _deal_key(task: Task) -> dict[str, Any]:
    # What a split may lack is no part of a task's identity, since it changes no split.
    return _key(task) | {"every_class": task.every_class}


def check_use(task: Task, sizes: Sizes, seeds: tuple[int | None, ...]) -> None:
    """Raises UserError for data that cannot be used so, as far as a plan can know: all of it if at hand.

    `seeds`: those that deal a split each; None is the one that all share.
    """
    for split, wanted, available in zip(SPLITS, sizes, task.sizes or (), strict=False):
        check_size(task, split, wanted, available)
    for split, wanted, share in zip(SPLITS, sizes, task.redealt or (), strict=False):
        # Blocks stay whole, so that a split may have a few examples more than its share.
        if task.total and wanted is not None and wanted > task.total * share * 11 // 1000:
            raise UserError(
                f"{split}_size must be at most {task.total * share // 100} or so, {share} % of the "
                f"{task.total} examples of task '{task.name}', got {wanted}"
            )
    # To find images that are the same all have to be read, for which a plan needs a reason.
    if task.at_hand and (task.modality == "text" or any(sizes)):
        _check_splits(task, sizes, seeds)


def split_count(task: Task, split: SplitName) -> int | None:
    """How many examples the split that all seeds share has; None where no plan can know it yet.

    Raises UserError for data that cannot be split.
    """
    if task.sizes is not None:
        return task.sizes[SPLITS.index(split)]
    return _dealt_counts(task)[split] if task.at_hand and task.modality == "text" else None


@lru_cache(maxsize=32)
def _dealt_counts(task: Task) -> dict[SplitName, int]:
    return {split: len(chosen) for split, chosen in dealt(Source(task)).items()}


@lru_cache(maxsize=32)
def _check_splits(task: Task, sizes: Sizes, seeds: tuple[int | None, ...]) -> None:
    """Each row of a suite is looked at once, however many backbones it has."""
    source = Source(task)
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
            elif split != "train" and METRICS.get(task.metric).every_class:
                labels = source.examples.labels
                check_labels(task, split, as_tensor(task, [labels[i] for i in chosen[:size]]))


def check_size(task: Task, split: str, wanted: int | None, available: int, seed: int | None = None) -> None:
    """Raises UserError for a subset that is larger than its split."""
    if wanted is not None and not 1 <= wanted <= available:
        by = "" if seed is None else f" as seed {seed} deals it"
        raise UserError(
            f"{split}_size must be from 1 to {available}, "
            f"the size of the {split} split of task '{task.name}'{by}, got {wanted}"
        )
