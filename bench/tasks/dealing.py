"""How every task's examples are dealt into splits: what stays together, and what goes where."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.tasks.base import SPLITS, SplitName, Task
from methods.errors import UserError


def normalise_text(text: str) -> str:
    """What two texts share that differ only in case, spaces, unicode form and what is no letter or number.

    These are the first rules, which leave out the vowel signs of many scripts, and emoji, too.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    # A text without any letter or digit, such as a smiley, is told by its signs.
    return " ".join(re.findall(r"[^\W_]+", folded)) or folded.strip()


class _Told(dict[int, str]):
    """What each character becomes: letters, numbers, marks and symbols stay, and all others part words."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        # A variation selector says how the character before it is drawn.
        drawn = "" if 0xFE00 <= code <= 0xFE0F else character
        self[code] = drawn if unicodedata.category(character)[0] in "LNMS" else " "
        return self[code]


_TOLD = _Told()


def told_text(text: str) -> str:
    """As `normalise_text`, by the second rules: vowel signs, emoji and signs such as + tell texts apart."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_TOLD).split()) or folded.strip()


def first_places(keying: Sequence[Hashable] | NDArray[Any]) -> NDArray[np.int64]:
    """For each position the first one with an equal key."""
    if isinstance(keying, np.ndarray):
        _, first, which = np.unique(keying, return_index=True, return_inverse=True)
        return first[which]
    seen: dict[Hashable, int] = {}
    places = (seen.setdefault(key, place) for place, key in enumerate(keying))
    return np.fromiter(places, np.int64, len(keying))


def _joined(size: int, ones: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each position the first of those that pairs join it to, however many those are, or itself."""
    # The import takes a while, which only the preparation of data has to spend.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not size:
        return np.zeros(0, dtype=np.int64)
    pairs = coo_array((np.ones(len(ones), dtype=np.int8), (ones, others)), shape=(size, size))
    _, group = connected_components(pairs, directed=False)
    return first_places(group)


def _linked(firsts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    size = len(firsts[0])
    return _joined(size, np.tile(np.arange(size), len(firsts)), np.concatenate(firsts))


def link(*keyings: Sequence[Hashable]) -> list[int]:
    """Group numbers such that examples that are equal in any one of the keyings share a group.

    A number is the position of the group's first example.
    """
    numbers: list[int] = _linked([first_places(keying) for keying in keyings]).tolist()
    return numbers


def near_duplicates(texts: Sequence[str], percent: int = 80) -> list[int]:
    """Group numbers of texts whose sets of words overlap by `percent` or more (Jaccard), transitively.

    A number is the position of the group's first text.
    """
    words = [set(normalise_text(text).split()) for text in texts]
    frequency = Counter(word for text in words for word in text)
    pairs: list[tuple[int, int]] = []
    holders: defaultdict[str, list[int]] = defaultdict(list)
    for i, mine in enumerate(words):
        # Two sets that overlap so much share a word among the rarest few of each: only those are looked up.
        rarest = sorted(mine, key=lambda word: (frequency[word], word))
        few = rarest[: len(mine) + 1 - -(-percent * len(mine) // 100)]
        for j in {j for word in few for j in holders[word]}:
            if 100 * len(mine & words[j]) >= percent * len(mine | words[j]):
                pairs.append((i, j))
        for word in few:
            holders[word].append(i)
    ones, others = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    numbers: list[int] = _joined(len(texts), ones, others).tolist()
    return numbers


def stable_order(name: str, items: Iterable[Hashable]) -> NDArray[np.int64]:
    """Positions of the items in an order that looks random but depends on `name` and the items alone."""
    digests = (hashlib.sha256(f"{name}\0{item}".encode()).digest() for item in items)
    return np.argsort(np.fromiter(digests, dtype="S32"), kind="stable")


#: A regression's targets are dealt by their place among all of them, in so many equal parts.
PARTS = 10

#: By the second rules a part has so many at least: of fewer, no split has its share of any.
LEAST = 20


def strata(task: Task, labels: Sequence[Any]) -> list[tuple[int, ...]]:
    """Of each example what a deal spreads evenly: its classes, or the part of all targets that its lies in.

    An example without any class is of a stratum of its own.
    """
    if task.target == "multi-label":
        return [label or (len(task.classes),) for label in labels]
    if task.target == "generation":
        return [(0,)] * len(labels)
    places: Iterable[int] = labels
    if task.target == "regression":
        most = PARTS if task.rules == 1 else max(1, min(PARTS, len(labels) // LEAST))
        edges = np.quantile(labels, np.arange(1, most) / most) if len(labels) else np.zeros(0)
        places = np.searchsorted(edges, labels, side="right").tolist()
    # One tuple for all examples of a stratum: of a large table there would be millions.
    made: dict[int, tuple[int, ...]] = {}
    return [made.setdefault(part, (part,)) for part in places]


def blocks(
    labels: Sequence[Any],
    contents: Sequence[Hashable] | NDArray[Any],
    groups: Sequence[Hashable] | NDArray[Any] | None,
    splits: Sequence[SplitName] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the examples that are kept, and for each of them the number of its block.

    Examples with the same content are duplicates and form a block, as does a group: no deal parts it.
    Duplicates whose labels disagree are all dropped, unless they belong to official `splits`, which stay
    whole, or the labels are floats or texts: ratings of one text, and answers to it, need not agree.
    """
    kept = np.arange(len(labels))
    keyings = [first_places(keying) for keying in (contents, groups) if keying is not None]
    if splits is None and not isinstance(next(iter(labels), None), (float, str)):
        same, label = keyings[0], first_places(labels)
        disagree = np.zeros(len(labels), dtype=bool)
        disagree[same[label != label[same]]] = True
        kept = kept[~disagree[same]]
    return kept, _linked([first_places(keying[kept]) for keying in keyings])


def deal(
    task: Task,
    labels: Sequence[Any],
    ids: Sequence[int] | NDArray[np.int64],
    contents: Sequence[Hashable] | NDArray[Any],
    groups: Sequence[Hashable] | NDArray[Any] | None,
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
    if not len(kept) and len(labels):
        raise UserError(
            f"task '{task.name}': all of its {len(labels):,} examples are left out, since each is the "
            "duplicate of one with another label"
        )
    ids = np.asarray(ids, dtype=np.int64)
    dealt = {split: np.zeros(0, dtype=np.int64) for split in SPLITS}
    if splits is not None:
        official = np.array(splits)
        dealt |= {split: np.flatnonzero(official == split) for split in SPLITS[1:]}
        numbers = numbers[official == "train"]
        kept = np.flatnonzero(official == "train")
    if task.redealt and splits is not None:
        raise UserError(f"task '{task.name}': fractions go with splits that are dealt, and its are official")
    # Percentages of what is dealt, by split.
    shares = {
        split: share
        for split, share in zip(SPLITS, task.shares(set() if splits is None else set(splits)), strict=True)
        if not len(dealt[split]) and (share or splits is None)
    }
    if sum(shares.values()) != 100 or min(shares.values()) < 1:
        raise UserError(f"task '{task.name}': fractions must be percentages that add up to 100")
    seeded = "" if seed is None else f"/{seed}"
    parts = strata(task, labels)
    dealt |= _share_out(kept, numbers, ids, f"{task.name}/split{seeded}", parts, shares)
    for split, positions in dealt.items():
        if not len(positions):
            raise UserError(f"task '{task.name}': its {split} split has no example")
        found = {part for i in positions for part in parts[i]}
        lacking = [c for c in range(len(task.classes)) if c not in found]
        if task.every_class and lacking:
            told = (f"{task.classes[c]} ({sum(c in of for of in parts):,} in all)" for c in lacking)
            raise UserError(f"task '{task.name}': its {split} split has no example of {', '.join(told)}")
    return {
        split: positions[stable_order(f"{task.name}/order{seeded}", ids[positions])]
        for split, positions in dealt.items()
    }


def _share_out(
    kept: NDArray[np.int64],
    numbers: NDArray[np.int64],
    ids: NDArray[np.int64],
    name: str,
    parts: Sequence[tuple[int, ...]],
    shares: Mapping[SplitName, int],
) -> dict[SplitName, NDArray[np.int64]]:
    """Deals blocks, each to the split that it brings nearest to its share of every stratum.

    `numbers`: the block of each of the positions `kept`. `parts`: the strata of each example. `name` and the
    smallest id of each block decide in what order blocks of one size come.
    """
    if not len(kept):
        return {}
    by_block = np.argsort(numbers, kind="stable")
    positions = kept[by_block]
    starts = np.flatnonzero(np.diff(numbers[by_block], prepend=-1))
    sizes = np.diff(starts, append=len(positions))
    order = stable_order(name, np.minimum.reduceat(ids[positions], starts))
    order = order[np.argsort(-sizes[order], kind="stable")]
    total = Counter(part for i in kept for part in parts[i])
    have: dict[SplitName, Counter[int]] = {split: Counter() for split in shares}
    names = tuple(shares)
    side = np.zeros(len(starts), dtype=np.int8)
    for block in order:
        members = positions[starts[block] : starts[block] + sizes[block]]
        counts = Counter(part for i in members for part in parts[i])
        growth = {split: _growth(counts, have[split], total, share) for split, share in shares.items()}
        chosen = min(growth, key=growth.__getitem__)
        have[chosen].update(counts)
        side[block] = names.index(chosen)
    of_position = np.repeat(side, sizes)
    return {split: positions[of_position == number] for number, split in enumerate(names)}


def _growth(counts: Counter[int], have: Counter[int], total: Counter[int], share: int) -> int:
    """How much a split's distance from its share grows by a block with these counts of the classes.

    The distance is chi-square: of each class (have - wanted)² / wanted, where wanted is `share` percent of
    `total`. It is computed in integers, so that the split is the same on every machine.
    """
    return sum(
        (n * n * 100 - 2 * n * (share * total[c] - 100 * have[c])) * 10**12 // (share * total[c])
        for c, n in counts.items()
    )
