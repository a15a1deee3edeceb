"""Chooses the ranks of a TensLoRA tensor under a budget.

Tucker ranks follow the paper's heuristic: head, projection and layer modes have their full rank, equal modes
have equal ranks, and larger modes have larger ranks. CP and tensor train use one rank throughout; the paper
has no results for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Protocol

from tensorbench.methods.sizes import nearest, nearest_rank

#: Counts the parameters for given ranks.
CountRanks = Callable[[tuple[int, ...]], int]


class CountPair(Protocol):
    """A function that counts parameters.

    `wide` is the rank of the input, and `narrow` is the rank of the output or head size.
    """

    def __call__(self, wide: int, narrow: int) -> int: ...


#: The largest ratio of the input's rank to the head size's rank, for tensors with a head mode. For these,
#: many pairs of ranks come near a budget, and the nearest pair can be degenerate. So the ratio has to be
#: above 1 and at most this number.
LARGEST_RATIO = 5


def even_ranks(bonds: int, count: CountRanks, budget: int, *, uneven: bool) -> tuple[int, ...]:
    """Returns the equal ranks whose count is nearest to the budget.

    With `uneven`, the first bonds may have a rank that is one larger than the rank of the others.
    """
    rank = nearest_rank(lambda r: count((r,) * bonds), budget)
    even = [(rank,) * bonds]
    steps = range(1, bonds) if uneven else ()
    bent = [(r + 1,) * k + (r,) * (bonds - k) for r in (rank - 1, rank) if r for k in steps]
    return nearest(even + bent, count, budget)


def tucker_ranks(
    sizes: Mapping[str, int], count: CountRanks, budget: int, *, uneven: bool
) -> tuple[int, ...]:
    """Returns the ranks whose count is nearest to the budget, among those that the heuristic allows.

    `sizes` has the size of each mode. The head, projection and layer modes have full ranks. If these exceed
    the budget even with the smallest other ranks, they are capped: at the largest number that fits, or else
    at 1. With `uneven`, r(input) may be one above r(output), unless there is a head mode.
    """
    heads = "head_size" in sizes
    cap = max(size for mode, size in sizes.items() if mode in ("head", "projection", "layer"))

    def ranks(wide: int, narrow: int) -> tuple[int, ...]:
        free_ranks = {"input": wide, "output": narrow, "head_size": narrow}
        return tuple(free_ranks.get(mode) or min(size, cap) for mode, size in sizes.items())

    def count_pair(wide: int, narrow: int) -> int:
        return count(ranks(wide, narrow))

    # If heads are a mode, the smallest pair that the rule allows is (2, 1).
    while cap > 1 and count_pair(2 if heads else 1, 1) > budget:
        cap -= 1
    if heads:
        pairs = _unequal_pairs(sizes["input"], sizes["head_size"], count_pair, budget)
        # If even a cap of 1 exceeds the budget, no smaller ranks are left.
        pairs = chain([(1, 1)] if cap == 1 else [], pairs)
    else:
        pairs = _equal_pairs(min(sizes["input"], sizes["output"]), count_pair, budget, uneven=uneven)
    return nearest((ranks(wide, narrow) for wide, narrow in pairs), count, budget)


def _equal_pairs(size: int, count: CountPair, budget: int, *, uneven: bool) -> Iterator[tuple[int, int]]:
    """Yields the pair (input rank, output rank) of equal ranks that is nearest to the budget.

    With `uneven`, also yields the next smaller and the next larger pair of the form (r + 1, r).
    """
    rank = nearest_rank(lambda r: count(r, r), budget, high=size)
    yield rank, rank
    if uneven:
        yield from ((r + 1, r) for r in (rank - 1, rank) if 1 <= r < size)


def _unequal_pairs(size: int, head_size: int, count: CountPair, budget: int) -> Iterator[tuple[int, int]]:
    """Yields pairs (input rank, head size's rank) whose counts come near the budget.

    Each rank of the head size is paired with one input rank: the allowed one whose count is nearest to the
    budget.
    """
    for narrow in range(1, head_size + 1):
        if narrow > 1 and count(narrow, narrow - 1) > budget:
            return
        low, high = min(narrow + 1, size), min(LARGEST_RATIO * narrow, size)
        wide = nearest_rank(partial(count, narrow=narrow), budget, low, high)
        yield wide, narrow
