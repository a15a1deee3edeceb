"""Deals a task's examples into splits, respecting duplicates, groups and class shares."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.tasks.task import SPLITS, SplitName, Task
from methods.errors import UserError


def normalise_text(text: str) -> str:
    """Normalises a text for the search of duplicates, by version 1 of the rules.

    Removes case, punctuation and differences of spaces and Unicode form, but also emoji and the vowel signs
    of many scripts.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    # A text without letters or digits, such as an emoticon, keeps its signs.
    return " ".join(re.findall(r"[^\W_]+", folded)) or folded.strip()


class _Replacements(dict[int, str]):
    """Keeps letters, numbers, marks and symbols. Drops variation selectors.

    Other characters become spaces.
    """

    def __missing__(self, code: int) -> str:
        character = chr(code)
        # A variation selector only affects how the previous character is drawn.
        drawn = "" if 0xFE00 <= code <= 0xFE0F else character
        self[code] = drawn if unicodedata.category(character)[0] in "LNMS" else " "
        return self[code]


_REPLACEMENTS = _Replacements()


def normalise_text_2(text: str) -> str:
    """Like `normalise_text`, by version 2 of the rules: keeps vowel signs, emoji and signs such as +."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_REPLACEMENTS).split()) or folded.strip()


def first_places(keying: Sequence[Hashable] | NDArray[Any]) -> NDArray[np.int64]:
    """For each position, the first position with an equal key."""
    if isinstance(keying, np.ndarray):
        _, first, which = np.unique(keying, return_index=True, return_inverse=True)
        return first[which]
    seen: dict[Hashable, int] = {}
    places = (seen.setdefault(key, place) for place, key in enumerate(keying))
    return np.fromiter(places, np.int64, len(keying))


def _joined(size: int, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each position, the smallest position connected to it by the pairs `first[i]`, `second[i]`."""
    # A slow import, needed only to prepare data.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not size:
        return np.zeros(0, dtype=np.int64)
    pairs = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(size, size))
    _, group = connected_components(pairs, directed=False)
    return first_places(group)


def _linked(firsts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    size = len(firsts[0])
    return _joined(size, np.tile(np.arange(size), len(firsts)), np.concatenate(firsts))


def link(*keyings: Sequence[Hashable]) -> list[int]:
    """The group number of each example: equal keys in any of `keyings` join examples, transitively.

    A group's number is the position of its first example.
    """
    numbers: list[int] = _linked([first_places(keying) for keying in keyings]).tolist()
    return numbers


def near_duplicates(texts: Sequence[str], percent: int = 80) -> list[int]:
    """Group numbers: texts whose sets of words have a Jaccard index of `percent` or more, transitively.

    A group's number is the position of its first text.
    """
    words = [set(normalise_text(text).split()) for text in texts]
    frequency = Counter(word for text in words for word in text)
    pairs: list[tuple[int, int]] = []
    holders: defaultdict[str, list[int]] = defaultdict(list)
    for i, mine in enumerate(words):
        # Sets that are this similar share one of the rarest few words of each, so only those are compared.
        rarest = sorted(mine, key=lambda word: (frequency[word], word))
        few = rarest[: len(mine) + 1 - -(-percent * len(mine) // 100)]
        for j in {j for word in few for j in holders[word]}:
            if 100 * len(mine & words[j]) >= percent * len(mine | words[j]):
                pairs.append((i, j))
        for word in few:
            holders[word].append(i)
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    numbers: list[int] = _joined(len(texts), first, second).tolist()
    return numbers


def stable_order(name: str, items: Iterable[Hashable]) -> NDArray[np.int64]:
    """Positions of the items in a pseudo-random order that depends only on `name` and the items."""
    digests = (hashlib.sha256(f"{name}\0{item}".encode()).digest() for item in items)
    return np.argsort(np.fromiter(digests, dtype="S32"), kind="stable")


#: The number of equal parts into which sorted regression targets are cut, to be dealt like classes.
PARTS = 10

#: In version 2 of the rules, there are fewer than `PARTS` if each would have fewer examples than this.
LEAST = 20


def strata(task: Task, labels: Sequence[Any]) -> list[tuple[int, ...]]:
    """The strata of each example: its classes or its range of targets. Every split gets its share of each.

    Examples without any class form a stratum, and so do all examples of a generation task.
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
    # Sharing one tuple per stratum saves memory.
    tuples: dict[int, tuple[int, ...]] = {}
    return [tuples.setdefault(part, (part,)) for part in places]


def blocks(
    labels: Sequence[Any],
    contents: Sequence[Hashable] | NDArray[Any],
    groups: Sequence[Hashable] | NDArray[Any] | None,
    splits: Sequence[SplitName] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The positions of kept examples, and the number of each one's block. Blocks are never separated.

    A block is a set of examples that no split separates: duplicates, or a group. Duplicates with different
    labels are dropped, except in official `splits`, and except for ratings and answers (floats and texts),
    which need not agree.
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
    """Deals examples into splits. Returns the positions of each split's examples.

    Blocks (see `blocks`) are dealt large ones first, each to the split whose shares of classes it disturbs
    least. Official test and validation splits keep their examples; a missing validation split is dealt from
    train. Positions are shuffled, so that the first n of a split are a fair sample. A `seed` changes deal and
    order. Raises UserError if a split is empty or lacks a class, if fractions do not add up to 100, for a
    suite's fractions with official splits, and if every example duplicates one with another label.
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
        present = {part for i in positions for part in parts[i]}
        lacking = [c for c in range(len(task.classes)) if c not in present]
        if task.every_class and lacking:
            names = (f"{task.classes[c]} ({sum(c in part for part in parts):,} in all)" for c in lacking)
            raise UserError(f"task '{task.name}': its {split} split has no example of {', '.join(names)}")
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
    """Deals each block (see `blocks`) to the split whose distance from its shares of the strata grows least.

    `numbers`: the block of each position in `kept`. `parts`: the strata of each example. Blocks of equal size
    are ordered by `name` and their smallest id.
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
    """The increase of a split's distance from its share caused by a block with these class counts.

    The distance is chi-square: the sum over classes of (have - expected)² / expected, where expected is
    `share` percent of `total`. In integer units of 10⁻¹², so that every machine deals alike.
    """
    return sum(
        (n * n * 100 - 2 * n * (share * total[c] - 100 * have[c])) * 10**12 // (share * total[c])
        for c, n in counts.items()
    )
