"""Deals a task's examples into splits.

Duplicates and groups stay together, and every split gets its share of each class.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensorbench.methods.errors import UserError
from tensorbench.tasks.labels import AMOUNTS, is_number
from tensorbench.tasks.task import SPLITS, SplitName, Task


def normalise_text(text: str) -> str:
    """Normalises a text by version 1 of `Task.rules`. Texts with equal results are duplicates.

    Case, punctuation, spacing and Unicode form are normalised. Emoji and the vowel signs of many scripts are
    lost too, which version 2 corrects.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    # A text without letters or digits, such as an emoticon, keeps its signs.
    return " ".join(re.findall(r"[^\W_]+", folded)) or folded.strip()


class _Replacements(dict[int, str]):
    """A table for `str.translate` that keeps letters, numbers, marks and symbols.

    Variation selectors are dropped. All other characters become spaces.
    """

    def __missing__(self, code: int) -> str:
        character = chr(code)
        # A variation selector only affects how the previous character is drawn.
        drawn = "" if 0xFE00 <= code <= 0xFE0F else character
        self[code] = drawn if unicodedata.category(character)[0] in "LNMS" else " "
        return self[code]


_REPLACEMENTS = _Replacements()


def normalise_text_2(text: str) -> str:
    """Normalises a text by version 2 of `Task.rules`.

    Unlike `normalise_text`, it keeps vowel signs, emoji and symbols such as +.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_REPLACEMENTS).split()) or folded.strip()


def first_places(keying: Sequence[Hashable] | NDArray[Any]) -> NDArray[np.int64]:
    """Returns for each position the first position with an equal key: [0, 1, 0] for the keys a, b, a."""
    if isinstance(keying, np.ndarray):
        _, first, which = np.unique(keying, return_index=True, return_inverse=True)
        return first[which]
    seen: dict[Hashable, int] = {}
    places = (seen.setdefault(key, place) for place, key in enumerate(keying))
    return np.fromiter(places, np.int64, len(keying))


def _joined(size: int, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns for each position the smallest position in its connected component.

    The edges are the pairs (`first[i]`, `second[i]`) of positions below `size`.
    """
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
    """Returns the group number of each example, which is the position of the group's first example.

    Each of `keyings` has one key per example. Two examples with equal keys in any of them are in one group.
    If a is in a group with b, and b with c, all three are in one group.
    """
    numbers: list[int] = _linked([first_places(keying) for keying in keyings]).tolist()
    return numbers


def near_duplicates(texts: Sequence[str], percent: int = 80) -> list[int]:
    """Returns the group number of each text, which is the position of the group's first text.

    Two texts are in one group if the Jaccard index of their sets of words is at least `percent`. If a is in a
    group with b, and b with c, all three are in one group.
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
    """Returns the items' positions in a pseudo-random order that depends only on `name` and the items."""
    digests = (hashlib.sha256(f"{name}\0{item}".encode()).digest() for item in items)
    return np.argsort(np.fromiter(digests, dtype="S32"), kind="stable")


#: Regression targets are cut into this number of ranges with equally many examples, which are dealt like
#: classes.
PARTS = 10

#: In version 2 of `Task.rules`, data with fewer than PARTS × LEAST examples are cut into fewer ranges: one
#: for every LEAST examples, and at least one.
LEAST = 20


def strata(task: Task, labels: Sequence[Any]) -> list[tuple[int, ...]]:
    """Returns the strata of each example: its classes, or the number of the range that holds its target.

    `deal` gives every split its share of each stratum. Multi-label examples without a class form a stratum of
    their own. All examples of a generation task are in one stratum.
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
    task: Task,
    labels: Sequence[Any],
    contents: Sequence[Hashable] | NDArray[Any],
    groups: Sequence[Hashable] | NDArray[Any] | None,
    splits: Sequence[SplitName] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the positions of the M examples to keep, and the block number of each, both int64 (M,).

    A block is a set of examples that go to the same split: duplicates, or a group. `contents` has equal
    values for duplicates, and `groups` has equal values for a group. Duplicates with different classes are
    dropped, unless the data have official `splits`. Regression targets and written answers of duplicates may
    differ. Raises UserError if no example is left.
    """
    kept = np.arange(len(labels))
    keyings = [first_places(keying) for keying in (contents, groups) if keying is not None]
    if splits is None and not isinstance(next(iter(labels), None), (float, str)):
        same, label = keyings[0], first_places(labels)
        disagree = np.zeros(len(labels), dtype=bool)
        disagree[same[label != label[same]]] = True
        kept = kept[~disagree[same]]
    if not len(kept) and len(labels):
        raise UserError(
            f"task '{task.name}': all of its {len(labels):,} examples are left out, since each is the "
            "duplicate of one with another label"
        )
    return kept, _linked([first_places(keying[kept]) for keying in keyings])


def dealt_shares(task: Task, splits: Iterable[SplitName] | None) -> dict[SplitName, int]:
    """Returns the percentages of the splits that are dealt. `splits` are the examples' official splits.

    Raises UserError if they do not add up to 100, and if a suite gives fractions for official splits.
    """
    official: set[SplitName] = set() if splits is None else set(splits)
    if task.redealt and official:
        raise UserError(f"task '{task.name}': fractions go with splits that are dealt, and its are official")
    fractions = task.shares(official)
    shares = {
        split: share
        for split, share in zip(SPLITS, fractions, strict=True)
        if split not in official - {"train"} and (share or not official)
    }
    if sum(shares.values()) != 100 or min(shares.values()) < 1:
        raise UserError(
            f"task '{task.name}': fractions must be percentages of 1 or more that add up to 100; an official "
            f"validation or test split has 0, got {', '.join(map(str, fractions))}"
        )
    return shares


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

    `contents` and `groups` determine the blocks of examples that stay together (see `blocks`). Blocks are
    dealt in order of size, the largest first. Each goes to the split whose shares of the classes it disturbs
    least. If `splits` is given, official validation and test splits keep their examples, and a missing one is
    dealt from train. Positions are shuffled, so that the first n of a split are a fair sample. Each `seed`
    gives a different deal and order. None gives the deal that all seeds share.

    Raises UserError if a split is empty, if a split lacks a class that the task requires, if no example is
    left because every one has a duplicate with another label, and as `dealt_shares` does.
    """
    kept, numbers = blocks(task, labels, contents, groups, splits)
    ids = np.asarray(ids, dtype=np.int64)
    dealt = {split: np.zeros(0, dtype=np.int64) for split in SPLITS}
    if splits is not None:
        official = np.array(splits)
        dealt |= {split: np.flatnonzero(official == split) for split in SPLITS[1:]}
        numbers = numbers[official == "train"]
        kept = np.flatnonzero(official == "train")
    shares = dealt_shares(task, splits)
    seeded = "" if seed is None else f"/{seed}"
    parts = strata(task, labels)
    dealt |= _share_out(kept, numbers, ids, f"{task.name}/split{seeded}", parts, shares)
    for split, positions in dealt.items():
        check_classes(task, split, positions, parts)
    return {
        split: positions[stable_order(f"{task.name}/order{seeded}", ids[positions])]
        for split, positions in dealt.items()
    }


def check_classes(
    task: Task, split: SplitName, positions: NDArray[np.int64], parts: Sequence[tuple[int, ...]]
) -> None:
    """Raises UserError if a split is empty, or if it lacks a class that the task requires.

    `positions` has the split's examples, and `parts` the strata of every example (see `strata`).
    """
    if not len(positions):
        raise UserError(f"task '{task.name}': its {split} split has no example")
    present = {part for i in positions for part in parts[i]}
    lacking = [c for c in range(len(task.classes)) if c not in present]
    if task.every_class and lacking:
        names = (f"{task.classes[c]} ({sum(c in part for part in parts):,} in all)" for c in lacking)
        # Numbers often name the classes of images.
        amounts = task.rules == 2 and task.modality == "text" and all(map(is_number, task.classes))
        raise UserError(
            f"task '{task.name}': its {split} split has no example of {', '.join(names)}"
            f"{f'; {AMOUNTS}' if amounts else ''}"
        )


def _share_out(
    kept: NDArray[np.int64],
    numbers: NDArray[np.int64],
    ids: NDArray[np.int64],
    name: str,
    parts: Sequence[tuple[int, ...]],
    shares: Mapping[SplitName, int],
) -> dict[SplitName, NDArray[np.int64]]:
    """Deals each block to the split that it moves least away from its share of each stratum (see `_growth`).

    `kept` has the positions to deal, `numbers` the block of each position (see `blocks`), and `parts` the
    strata of every example. Blocks of equal size are dealt in a pseudo-random order that depends on `name`
    and on the smallest id in each block.
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
    """Returns how much a block with these class counts would increase a split's distance from its share.

    The distance is chi-square: the sum over classes of (have - expected)² / expected, where expected is
    `share` percent of `total`. It is an integer in units of 10⁻¹², so that every machine deals alike.
    """
    return sum(
        (n * n * 100 - 2 * n * (share * total[c] - 100 * have[c])) * 10**12 // (share * total[c])
        for c, n in counts.items()
    )
