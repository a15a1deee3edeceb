"""The order of methods: pairs that differ significantly, places, and letters of groups without difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, stats

from tensorbench.reports.inference.effects import Effect
from tensorbench.reports.inference.intervals import LEVEL, RESOLUTION_DIGITS, Array, simultaneous


@dataclass(frozen=True)
class Ranks:
    """The places of methods, 1 for the best. Ties share the mean of their places."""

    #: Each method's places on the single settings, averaged over settings. This average has no interval.
    mean: Array
    #: Each method's place by its mean score over settings.
    place: Array
    #: The ends of the interval of `place`. None if no pair of methods has an interval.
    low: Array | None
    high: Array | None


def places(values: Array) -> Array:
    """The places of values along the last axis, 1 for the largest.

    Values that agree to `RESOLUTION_DIGITS` decimals tie.
    """
    ranked: Array = stats.rankdata(-np.round(values, RESOLUTION_DIGITS), axis=-1)
    return ranked


def ranks(means: Array, separations: NDArray[np.int64] | None) -> Ranks:
    """The places of methods, from their mean scores (settings, methods). Larger scores are better.

    Scores are divided by their typical size beforehand. `separations` (methods, methods) says which pairs
    differ significantly, as the function `separations` returns it. A method's place comes after all
    significantly better methods and before all significantly worse ones. Comparisons of pairs are
    simultaneous, and therefore the intervals of places are too (Klein, Wright and Wieczorek, 2020; Al
    Mohamad, Goeman and van Zwet, 2022).
    """
    mean, place = places(means).mean(0), places(means.mean(0))
    if separations is None:
        return Ranks(mean, place, None, None)
    above, below = (separations < 0).sum(1), (separations > 0).sum(1)
    # Means use all runs, pairs only shared seeds. If runs were lost, the two may disagree.
    low = np.minimum(1.0 + above, place)
    high = np.maximum(len(place) - below, place).astype(float)
    return Ranks(mean, place, low, high)


def separations(
    pairs: Sequence[tuple[int, int, Effect]], methods: int, level: float = LEVEL
) -> NDArray[np.int64] | None:
    """The significant differences between methods, as a matrix (methods, methods).

    An entry is 1 if the row's method is significantly better than the column's, -1 if it is significantly
    worse, and otherwise 0. Each of `pairs` has the indices of two methods and the effect of the first minus
    the second. The intervals of all pairs are simultaneous at `level`. Returns None if no pair has an
    interval.
    """
    signs = np.zeros((methods, methods), dtype=np.int64)
    any_interval = False
    each = simultaneous(methods * (methods - 1) // 2, level)
    for i, j, effect in pairs:
        if (interval := effect.interval(each)) is not None:
            any_interval = True
            signs[i, j] = int(interval[0] > 0) - int(interval[1] < 0)
            signs[j, i] = -signs[i, j]
    return signs if any_interval else None


def best_of_equals(errors: Sequence[float]) -> float:
    """The expected lead of the best of several equal methods over their common true mean (Tippett, 1925).

    `errors` are the standard errors of the methods' measured means, which count as independent and normal. At
    least one must be above zero.
    """
    spread = np.array([error for error in errors if error])
    # In units of the largest error. Beyond eight of them the integrand is zero.
    points = np.linspace(0.0, 8 * spread.max(), 4001)
    above, below = (stats.norm.cdf(side * points[:, None] / spread).prod(1) for side in (1, -1))
    # A method without error has its true mean, so the largest mean is at least that.
    return float(integrate.simpson(1 - above - below * (len(spread) == len(errors)), x=points))


def letters(separable: NDArray[np.bool_]) -> list[str]:
    """A compact letter display: methods that share a letter are statistically indistinguishable.

    `separable` (methods, methods) says which pairs differ significantly. Methods are in the order of the
    table. The groups are found by insert and absorb (Piepho, 2004).
    """
    methods = len(separable)
    groups: list[set[int]] = [set(range(methods))]
    for i, j in zip(*np.nonzero(np.triu(separable)), strict=True):
        split = [group for group in groups if {int(i), int(j)} <= group]
        groups = [group for group in groups if group not in split]
        groups += [part for group in split for part in (group - {int(i)}, group - {int(j)})]
        groups = [
            g
            for k, g in enumerate(groups)
            if not any(g < o or (g == o and m < k) for m, o in enumerate(groups) if m != k)
        ]
    groups.sort(key=sorted)
    return [
        "".join(letter(n) for n, group in enumerate(groups) if method in group) for method in range(methods)
    ]


def letter(number: int) -> str:
    """The letter of a group: a, b, … z for numbers 0 to 25, then a2, b2, …"""
    return "abcdefghijklmnopqrstuvwxyz"[number % 26] + (str(number // 26 + 1) if number >= 26 else "")
