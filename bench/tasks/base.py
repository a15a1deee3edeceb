"""What a task is, and the rules by which every task's examples are dealt into splits."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from bench.inputs import Modality
from bench.sources.hub import Lockable
from methods.errors import UserError

Metric = Literal["accuracy", "matthews"]

SplitName = Literal["train", "validation", "test"]

#: Grows whenever `deal`, or the preparation in `bench.tasks.data`, treats the same examples differently.
PREPARATION_VERSION = 1

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


class DataSource(Lockable):
    """Where a hub task's data come from: another hub repository, another revision, or a folder."""

    #: A folder with the repository's parquet files, under their names there.
    local: Path | None = None
    #: A repository whose data have the same columns.
    hub: str | None = None
    #: Branch, tag or commit of the repository.
    revision: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.local is not None and (self.hub is not None or self.revision is not None):
            raise ValueError("a source is a local folder, or a hub repository and its revision, not both")
        return self


class LazyImages(Sequence[NDArray[np.uint8]]):
    """RGB images as arrays (height, width, 3), each made from its item by `decode` when it is indexed."""

    def __init__(self, items: Sequence[Any], decode: Callable[[Any], NDArray[np.uint8]]) -> None:
        self._items, self._decode = items, decode

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...

    @overload
    def __getitem__(self, index: slice) -> LazyImages: ...

    def __getitem__(self, index: int | slice) -> NDArray[np.uint8] | LazyImages:
        if isinstance(index, slice):
            return LazyImages(self._items[index], self._decode)
        return self._decode(self._items[index])


@dataclass(frozen=True)
class Examples:
    """A task's raw examples, in any order that is the same every time.

    `inputs`: strings, pairs of strings, or RGB images as uint8 arrays (height, width, 3); a lazy sequence
    that decodes an image when it is indexed will do. `labels`: indices into the task's classes. `ids`:
    integers that name the examples in their source for good. `groups`: examples that must not be parted by
    the split (near-duplicates, the same review, the same place) have equal keys; None where there are none.
    Exact duplicates need no key: they are found and kept together in any case. `splits`: which official
    split an example belongs to; None where there are none and all splits are ours to deal.
    """

    inputs: Sequence[str] | Sequence[tuple[str, str]] | Sequence[NDArray[np.uint8]]
    labels: Sequence[int]
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
        if len(set(self.ids)) < len(self.ids):
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

    `metric` is "accuracy" or "matthews" (Matthews' correlation, for uneven classes). `version` must
    grow whenever `examples`, `fractions` or the label rule change: with `data_hash` it names the
    prepared data and enters every trial's id. `fractions` are the percentages of train, validation and
    test; where the test split is official, those of train and validation. `sizes`, if given, are the
    splits' true sizes, known before anything is downloaded.
    """

    name: str
    modality: Modality
    classes: tuple[str, ...]
    metric: Metric = "accuracy"
    data_hash: str
    version: int = 1
    description: str
    license: str
    fractions: tuple[int, int, int] = (70, 15, 15)
    sizes: tuple[int, int, int] | None = None

    @abstractmethod
    def examples(self) -> Examples:
        """All examples, fetched if need be. Raises UserError if they cannot be had."""

    def at(self, source: DataSource) -> Task:
        """The same task with its data from elsewhere. Raises UserError where there is only one place."""
        raise UserError(f"task '{self.name}' brings its own data and takes no source")

    def pinned(self) -> DataSource | None:
        """The source of the very data that `data_hash` names; None where there is only one place."""
        return None

    def identity_hash(self) -> str:
        """Names data, labels, splits, preparation and metric for good; known without having the data."""
        parts = [self.name, self.data_hash, str(self.version), str(PREPARATION_VERSION)]
        # Accuracy was there first, and its trials keep their ids.
        parts += [self.metric] if self.metric != "accuracy" else []
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def normalise_text(text: str) -> str:
    """What two texts share when they are the same but for case, punctuation, spaces or unicode form."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # A text of signs alone, such as a smiley, has nothing but its signs to be told by.
    return " ".join(re.findall(r"[^\W_]+", folded)) or folded.strip()


class _Groups:
    """Union-find over positions; a group goes by its first member."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        a, b = self.find(i), self.find(j)
        self._parent[max(a, b)] = min(a, b)

    def numbers(self) -> list[int]:
        return [self.find(i) for i in range(len(self._parent))]


def link(*keyings: Sequence[Hashable]) -> list[int]:
    """Group numbers such that examples that are equal in any one of the keyings share a group.

    A number is the position of the group's first example.
    """
    groups = _Groups(len(keyings[0]))
    for keying in keyings:
        first: dict[Hashable, int] = {}
        for i, key in enumerate(keying):
            groups.join(first.setdefault(key, i), i)
    return groups.numbers()


def near_duplicates(texts: Sequence[str], percent: int = 80) -> list[int]:
    """Group numbers of texts whose sets of words overlap by `percent` or more (Jaccard), transitively.

    A number is the position of the group's first text.
    """
    words = [set(normalise_text(text).split()) for text in texts]
    frequency = Counter(word for text in words for word in text)
    groups = _Groups(len(texts))
    holders: defaultdict[str, list[int]] = defaultdict(list)
    for i, mine in enumerate(words):
        # Two sets that overlap so much share a word among the rarest few of each: only those are looked up.
        rarest = sorted(mine, key=lambda word: (frequency[word], word))
        few = rarest[: len(mine) + 1 - -(-percent * len(mine) // 100)]
        for j in {j for word in few for j in holders[word]}:
            if 100 * len(mine & words[j]) >= percent * len(mine | words[j]):
                groups.join(i, j)
        for word in few:
            holders[word].append(i)
    return groups.numbers()


def stable_order(name: str, items: Iterable[Hashable]) -> list[int]:
    """Positions of the items in an order that looks random but depends on `name` and the items alone."""
    keys = [hashlib.sha256(f"{name}\0{item}".encode()).digest() for item in items]
    return sorted(range(len(keys)), key=keys.__getitem__)


def blocks(
    labels: Sequence[int],
    contents: Sequence[Hashable],
    groups: Sequence[Hashable] | None,
    splits: Sequence[SplitName] | None,
) -> tuple[list[int], list[int]]:
    """Positions of the examples that are kept, and for each of them the number of its block.

    Examples with the same content are duplicates and form a block, as does a group: no deal parts it.
    Duplicates whose labels disagree are all dropped, unless they belong to official `splits`, which stay
    whole.
    """
    kept = list(range(len(labels)))
    if splits is None:
        seen: defaultdict[Hashable, set[int]] = defaultdict(set)
        for content, label in zip(contents, labels, strict=True):
            seen[content].add(label)
        kept = [i for i in kept if len(seen[contents[i]]) == 1]
    keyings = [keying for keying in (contents, groups) if keying is not None]
    return kept, link(*([keying[i] for i in kept] for keying in keyings))


def deal(
    task: Task,
    labels: Sequence[int],
    ids: Sequence[int],
    contents: Sequence[Hashable],
    groups: Sequence[Hashable] | None,
    splits: Sequence[SplitName] | None = None,
    seed: int | None = None,
) -> dict[SplitName, NDArray[np.int64]]:
    """Positions of the examples of each split, in the split's order.

    `blocks` says what is dropped and what stays together. Whole blocks, large ones first, go where they
    disturb least: to the split in which the chi-square distance between the classes' counts and their share
    grows least. It is computed in integers, so that the split is the same on every machine. Of official
    `splits`, test and validation stay as they are; where there is no validation, it is dealt from train.
    Within a split the order is a fixed shuffle, so that its first n are a fair sample. A `seed` gives
    another deal and another order. Raises UserError if a split lacks a class, or for fractions that are no
    percentages.
    """
    kept, numbers = blocks(labels, contents, groups, splits)
    dealt: dict[SplitName, list[int]] = {split: [] for split in SPLITS}
    members: defaultdict[int, list[int]] = defaultdict(list)
    for i, number in zip(kept, numbers, strict=True):
        if splits is None or splits[i] == "train":
            members[number].append(i)
        else:
            dealt[splits[i]].append(i)
    shares = {
        split: share
        for split, share in zip(SPLITS, task.fractions, strict=True)
        if not dealt[split] and (share or splits is None)
    }
    if sum(shares.values()) != 100 or min(shares.values()) < 1:
        raise UserError(f"task '{task.name}': fractions must be percentages that add up to 100")
    seeded = "" if seed is None else f"/{seed}"
    pool = list(members.values())
    order = stable_order(f"{task.name}/split{seeded}", (min(ids[i] for i in block) for block in pool))
    order.sort(key=lambda b: -len(pool[b]))
    total = np.bincount([labels[i] for block in pool for i in block], minlength=len(task.classes)).tolist()
    have = {split: [0] * len(task.classes) for split in shares}
    for b in order:
        counts = np.bincount([labels[i] for i in pool[b]], minlength=len(task.classes)).tolist()

        def growth(split: SplitName, counts: list[int] = counts) -> int:
            share = shares[split]
            return sum(
                (n * n * 100 - 2 * n * (share * total[c] - 100 * have[split][c]))
                * 10**12
                // (share * total[c])
                for c, n in enumerate(counts)
                if n
            )

        chosen = min(shares, key=growth)
        have[chosen] = [a + n for a, n in zip(have[chosen], counts, strict=True)]
        dealt[chosen] += pool[b]

    for split, positions in dealt.items():
        found = {labels[i] for i in positions}
        if len(found) < len(task.classes):
            lacking = ", ".join(name for c, name in enumerate(task.classes) if c not in found)
            raise UserError(f"task '{task.name}': its {split} split has no example of {lacking}")
    return {
        split: np.array(positions)[stable_order(f"{task.name}/order{seeded}", (ids[i] for i in positions))]
        for split, positions in dealt.items()
    }
