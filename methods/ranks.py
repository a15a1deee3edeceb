"""Ranks nearest to a parameter budget."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import TypeVar

from methods.errors import UserError

Choice = TypeVar("Choice")


def nearest_rank(count: Callable[[int], int], budget: int, low: int = 1, high: int | None = None) -> int:
    """The rank in [low, high] whose count is nearest to the budget, the smaller count on a tie.

    `count` must not decrease with the rank. Where it stops growing, the first rank of that count is the
    answer. Takes a number of counts that is logarithmic in the answer.
    """
    below, above = low, low
    while count(above) < budget and (high is None or above < high):
        below, above = above, above * 2 if high is None else min(above * 2, high)
        if count(above) == count(below):
            below, budget = low, count(above)
            break
    # The first rank that reaches the budget, and the one before it.
    above = bisect_left(range(below, above), budget, key=count) + below
    return nearest([max(low, above - 1), above], count, budget)


def nearest(candidates: Iterable[Choice], count: Callable[[Choice], int], budget: int) -> Choice:
    """The candidate whose count is nearest to the budget: on a tie the smaller count, of equals the first."""
    return min(candidates, key=lambda candidate: (abs(count(candidate) - budget), count(candidate)))


def too_small(label: str, budget: int, smallest: int, when: str = " with every rank 1") -> UserError:
    """The error for a budget that even the smallest size exceeds."""
    return UserError(
        f"{label}: a budget of {budget:,} parameters is below the smallest possible, {smallest:,}{when}"
    )
