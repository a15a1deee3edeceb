"""The ranks of a TensLoRA tensor under a budget.

For Tucker it is the paper's heuristic: head, projection and layer modes keep their full rank, equal modes
share a rank, and larger modes get larger ranks. CP and tensor train, for which the paper has no results, have
one rank throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Protocol

from methods.sizes import nearest, nearest_rank

#: The number of parameters with these ranks.
CountRanks = Callable[[tuple[int, ...]], int]


class CountPair(Protocol):
    """The number of parameters with these ranks of the input and of the output or the head size."""

    def __call__(self, wide: int, narrow: int) -> int: ...


#: Where heads are a mode, many pairs of ranks come near a budget, and the very nearest can be degenerate. So
#: the rank of the d-sized input is above that of the head size, and at most so many times as large.
LARGEST_RATIO = 5


def even_ranks(bonds: int, count: CountRanks, budget: int, *, uneven: bool) -> tuple[int, ...]:
    """Equal ranks whose count is nearest to the budget. `uneven` lets the first bonds be one larger."""
    rank = nearest_rank(lambda r: count((r,) * bonds), budget)
    even = [(rank,) * bonds]
    steps = range(1, bonds) if uneven else ()
    bent = [(r + 1,) * k + (r,) * (bonds - k) for r in (rank - 1, rank) if r for k in steps]
    return nearest(even + bent, count, budget)


def tucker_ranks(
    sizes: Mapping[str, int], count: CountRanks, budget: int, *, uneven: bool
) -> tuple[int, ...]:
    """The heuristic's ranks for modes of these sizes, nearest to the budget.

    Where the full small modes alone exceed the budget, they are capped as little as needed, at last all ranks
    to 1. `uneven` lets r(input) be one above r(output).
    """
    heads = "head_size" in sizes
    cap = max(size for mode, size in sizes.items() if mode in ("head", "projection", "layer"))

    def ranks(wide: int, narrow: int) -> tuple[int, ...]:
        free_ranks = {"input": wide, "output": narrow, "head_size": narrow}
        return tuple(free_ranks.get(mode) or min(size, cap) for mode, size in sizes.items())

    def count_pair(wide: int, narrow: int) -> int:
        return count(ranks(wide, narrow))

    # Where heads are a mode, the rule has no pair below 2, 1.
    while cap > 1 and count_pair(2 if heads else 1, 1) > budget:
        cap -= 1
    if heads:
        pairs = _unequal_pairs(sizes["input"], sizes["head_size"], count_pair, budget)
        # Nothing smaller is left where even a cap of 1 is too much.
        pairs = chain([(1, 1)] if cap == 1 else [], pairs)
    else:
        pairs = _equal_pairs(min(sizes["input"], sizes["output"]), count_pair, budget, uneven=uneven)
    return nearest((ranks(wide, narrow) for wide, narrow in pairs), count, budget)


def _equal_pairs(size: int, count: CountPair, budget: int, *, uneven: bool) -> Iterator[tuple[int, int]]:
    """The pair of one rank for input and output that is nearest to the budget, and its neighbours."""
    rank = nearest_rank(lambda r: count(r, r), budget, high=size)
    yield rank, rank
    if uneven:
        yield from ((r + 1, r) for r in (rank - 1, rank) if 1 <= r < size)


def _unequal_pairs(size: int, head_size: int, count: CountPair, budget: int) -> Iterator[tuple[int, int]]:
    """For each rank of the head size the input's that is nearest to the budget, of those the rule allows."""
    for narrow in range(1, head_size + 1):
        if narrow > 1 and count(narrow, narrow - 1) > budget:
            return
        low, high = min(narrow + 1, size), min(LARGEST_RATIO * narrow, size)
        wide = nearest_rank(partial(count, narrow=narrow), budget, low, high)
        yield wide, narrow
