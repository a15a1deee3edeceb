"""What a task is, and the rules by which every task's examples are dealt into splits."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bench.tasks.inputs import Modality
from methods.errors import UserError

Metric = Literal["accuracy", "matthews"]

#: Grows whenever `deal`, or the preparation in `bench.tasks.data`, treats the same examples differently.
PREPARATION_VERSION = 1

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Examples:
    """A task's raw examples, in any order that is the same every time.

    `inputs`: strings, or RGB images as uint8 arrays (height, width, 3); a lazy sequence that decodes an
    image when it is indexed will do. `labels`: indices into the task's classes. `ids`: integers that
    name the examples in their source for good. `groups`: examples that must not be parted by the split
    (near-duplicates, the same review, the same place) have equal keys; None where there are none.
    Exact duplicates need no key: they are found and kept together in any case.
    """

    inputs: Sequence[str] | Sequence[NDArray[np.uint8]]
    labels: Sequence[int]
    ids: Sequence[int]
    groups: Sequence[Hashable] | None = None

    def __post_init__(self) -> None:
        sizes = {"inputs": len(self.inputs), "labels": len(self.labels), "ids": len(self.ids)}
        if self.groups is not None:
            sizes["groups"] = len(self.groups)
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
    test. `sizes`, if given, are the splits' true sizes, known before anything is downloaded.
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

    def identity_hash(self) -> str:
        """Names data, labels, splits and preparation for good; known without having the data."""
        parts = [self.name, self.data_hash, str(self.version), str(PREPARATION_VERSION)]
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


def deal(
    task: Task,
    labels: Sequence[int],
    ids: Sequence[int],
    contents: Sequence[str],
    groups: Sequence[Hashable] | None,
) -> dict[str, NDArray[np.int64]]:
    """Positions of the examples of each split, in the split's order.

    Examples with the same content are duplicates: those whose labels disagree are all dropped, the others
    stay together, as do groups. Whole groups, large ones first, go where they disturb least: to the split
    in which the chi-square distance between the classes' counts and their share grows least. It is
    computed in integers, so that the split is the same on every machine. Within a split the order is a
    fixed shuffle, so that its first n are a fair sample. Raises UserError if a split lacks a class, or
    for fractions that are no percentages.
    """
    if sum(task.fractions) != 100 or min(task.fractions) < 1:
        raise UserError(f"task '{task.name}': fractions must be percentages that add up to 100")
    seen: defaultdict[str, set[int]] = defaultdict(set)
    for content, label in zip(contents, labels, strict=True):
        seen[content].add(label)
    kept = [i for i, content in enumerate(contents) if len(seen[content]) == 1]
    keyings: list[Sequence[Hashable]] = [[contents[i] for i in kept]]
    if groups is not None:
        keyings.append([groups[i] for i in kept])
    members: defaultdict[int, list[int]] = defaultdict(list)
    for i, group in zip(kept, link(*keyings), strict=True):
        members[group].append(i)

    blocks = list(members.values())
    order = stable_order(f"{task.name}/split", (min(ids[i] for i in block) for block in blocks))
    order.sort(key=lambda b: -len(blocks[b]))
    total = np.bincount([labels[i] for i in kept], minlength=len(task.classes)).tolist()
    have = [[0] * len(task.classes) for _ in SPLITS]
    dealt: list[list[int]] = [[] for _ in SPLITS]
    for b in order:
        counts = np.bincount([labels[i] for i in blocks[b]], minlength=len(task.classes)).tolist()

        def growth(s: int, counts: list[int] = counts) -> int:
            share = task.fractions[s]
            return sum(
                (n * n * 100 - 2 * n * (share * total[c] - 100 * have[s][c])) * 10**12 // (share * total[c])
                for c, n in enumerate(counts)
                if n
            )

        s = min(range(len(SPLITS)), key=growth)
        have[s] = [a + n for a, n in zip(have[s], counts, strict=True)]
        dealt[s] += blocks[b]

    for split, count in zip(SPLITS, have, strict=True):
        if 0 in count:
            lacking = ", ".join(name for name, n in zip(task.classes, count, strict=True) if not n)
            raise UserError(f"task '{task.name}': its {split} split has no example of {lacking}")
    return {
        split: np.array(positions)[stable_order(f"{task.name}/order", (ids[i] for i in positions))]
        for split, positions in zip(SPLITS, dealt, strict=True)
    }
