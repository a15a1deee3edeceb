"""How every task's examples are dealt into splits: what stays together, and what goes where."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.tasks.base import SPLITS, SplitName, Task
from methods.errors import UserError

if TYPE_CHECKING:
    from scipy.cluster.hierarchy import DisjointSet


def normalise_text(text: str) -> str:
    """What two texts share when they differ only in case, punctuation, spaces or unicode form."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # A text without any letter or digit, such as a smiley, is told by its signs.
    return " ".join(re.findall(r"[^\W_]+", folded)) or folded.strip()


def _disjoint(size: int) -> DisjointSet:
    """Positions that are joined to nothing yet."""
    # The import takes half a second, which only the preparation of data has to spend.
    from scipy.cluster.hierarchy import DisjointSet

    return DisjointSet(range(size))


def _group_numbers(joined: DisjointSet) -> list[int]:
    """For each position the first one of those that it is joined to, itself included."""
    first: dict[int, int] = {}
    return [first.setdefault(joined[i], i) for i in joined]


def link(*keyings: Sequence[Hashable]) -> list[int]:
    """Group numbers such that examples that are equal in any one of the keyings share a group.

    A number is the position of the group's first example.
    """
    joined = _disjoint(len(keyings[0]))
    for keying in keyings:
        first: dict[Hashable, int] = {}
        for i, key in enumerate(keying):
            joined.merge(first.setdefault(key, i), i)
    return _group_numbers(joined)


def near_duplicates(texts: Sequence[str], percent: int = 80) -> list[int]:
    """Group numbers of texts whose sets of words overlap by `percent` or more (Jaccard), transitively.

    A number is the position of the group's first text.
    """
    words = [set(normalise_text(text).split()) for text in texts]
    frequency = Counter(word for text in words for word in text)
    joined = _disjoint(len(texts))
    holders: defaultdict[str, list[int]] = defaultdict(list)
    for i, mine in enumerate(words):
        # Two sets that overlap so much share a word among the rarest few of each: only those are looked up.
        rarest = sorted(mine, key=lambda word: (frequency[word], word))
        few = rarest[: len(mine) + 1 - -(-percent * len(mine) // 100)]
        for j in {j for word in few for j in holders[word]}:
            if 100 * len(mine & words[j]) >= percent * len(mine | words[j]):
                joined.merge(i, j)
        for word in few:
            holders[word].append(i)
    return _group_numbers(joined)


def stable_order(name: str, items: Iterable[Hashable]) -> list[int]:
    """Positions of the items in an order that looks random but depends on `name` and the items alone."""
    keys = [hashlib.sha256(f"{name}\0{item}".encode()).digest() for item in items]
    return sorted(range(len(keys)), key=keys.__getitem__)


#: A regression's targets are dealt by their place among all of them, in so many equal parts.
PARTS = 10


def strata(task: Task, labels: Sequence[Any]) -> list[tuple[int, ...]]:
    """Of each example what a deal spreads evenly: its classes, or the part of all targets that its lies in.

    An example without any class is of a stratum of its own.
    """
    if task.target == "single label":
        return [(label,) for label in labels]
    if task.target == "multi-label":
        return [label or (len(task.classes),) for label in labels]
    if task.target == "generation":
        return [(0,) for _ in labels]
    edges = np.quantile(labels, np.arange(1, PARTS) / PARTS) if labels else np.zeros(0)
    return [(part,) for part in np.searchsorted(edges, labels, side="right").tolist()]


def blocks(
    labels: Sequence[Any],
    contents: Sequence[Hashable],
    groups: Sequence[Hashable] | None,
    splits: Sequence[SplitName] | None,
) -> tuple[list[int], list[int]]:
    """Positions of the examples that are kept, and for each of them the number of its block.

    Examples with the same content are duplicates and form a block, as does a group: no deal parts it.
    Duplicates whose labels disagree are all dropped, unless they belong to official `splits`, which stay
    whole, or the labels are floats or texts: ratings of one text, and answers to it, need not agree.
    """
    kept = list(range(len(labels)))
    if splits is None and not isinstance(next(iter(labels), None), (float, str)):
        seen: defaultdict[Hashable, set[Any]] = defaultdict(set)
        for content, label in zip(contents, labels, strict=True):
            seen[content].add(label)
        kept = [i for i in kept if len(seen[contents[i]]) == 1]
    keyings = [keying for keying in (contents, groups) if keying is not None]
    return kept, link(*([keying[i] for i in kept] for keying in keyings))


def deal(
    task: Task,
    labels: Sequence[Any],
    ids: Sequence[int],
    contents: Sequence[Hashable],
    groups: Sequence[Hashable] | None,
    splits: Sequence[SplitName] | None = None,
    seed: int | None = None,
) -> dict[SplitName, NDArray[np.int64]]:
    """Positions of the examples of each split, in the split's order.

    `blocks` says what is dropped and what stays together. Whole blocks, large ones first, go where they
    disturb the classes' shares least. Of official `splits`, test and validation stay as they are; where there
    is no validation, it is dealt from train. Within a split the order is a fixed shuffle, so that its first n
    are a fair sample. A `seed` gives another deal and another order. Raises UserError if a split lacks a
    class, for fractions that are no percentages, and for those of a suite where splits are official.
    """
    kept, numbers = blocks(labels, contents, groups, splits)
    dealt: dict[SplitName, list[int]] = {split: [] for split in SPLITS}
    members: defaultdict[int, list[int]] = defaultdict(list)
    for i, number in zip(kept, numbers, strict=True):
        if splits is None or splits[i] == "train":
            members[number].append(i)
        else:
            dealt[splits[i]].append(i)
    if task.redealt and splits is not None:
        raise UserError(f"task '{task.name}': fractions go with splits that are dealt, and its are official")
    # Percentages of what is dealt, by split.
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
    parts = strata(task, labels)
    dealt |= _share_out([pool[b] for b in order], parts, shares)
    for split, positions in dealt.items():
        if not positions:
            raise UserError(f"task '{task.name}': its {split} split has no example")
        found = {part for i in positions for part in parts[i]}
        if task.every_class and (lacking := [name for c, name in enumerate(task.classes) if c not in found]):
            raise UserError(f"task '{task.name}': its {split} split has no example of {', '.join(lacking)}")
    return {
        split: np.array(positions)[stable_order(f"{task.name}/order{seeded}", (ids[i] for i in positions))]
        for split, positions in dealt.items()
    }


def _share_out(
    pool: Sequence[Sequence[int]], parts: Sequence[tuple[int, ...]], shares: Mapping[SplitName, int]
) -> dict[SplitName, list[int]]:
    """Deals blocks, in their order, each to the split that it brings nearest to its share of every stratum.

    `parts`: the strata of each example.
    """
    number = 1 + max((part for of_one in parts for part in of_one), default=0)

    def counted(positions: Iterable[int]) -> list[int]:
        found = [part for i in positions for part in parts[i]]
        counts: list[int] = np.bincount(found, minlength=number).tolist()
        return counts

    total = counted(i for block in pool for i in block)
    have = {split: [0] * number for split in shares}
    dealt: dict[SplitName, list[int]] = {split: [] for split in shares}
    for block in pool:
        counts = counted(block)
        growth = {split: _growth(counts, have[split], total, share) for split, share in shares.items()}
        chosen = min(growth, key=growth.__getitem__)
        have[chosen] = [a + n for a, n in zip(have[chosen], counts, strict=True)]
        dealt[chosen] += block
    return dealt


def _growth(counts: Sequence[int], have: Sequence[int], total: Sequence[int], share: int) -> int:
    """How much a split's distance from its share grows by a block with these counts of the classes.

    The distance is chi-square: of each class (have - wanted)² / wanted, where wanted is `share` percent of
    `total`. It is computed in integers, so that the split is the same on every machine.
    """
    return sum(
        (n * n * 100 - 2 * n * (share * total[c] - 100 * have[c])) * 10**12 // (share * total[c])
        for c, n in enumerate(counts)
        if n
    )
