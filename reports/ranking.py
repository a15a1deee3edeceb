"""Ranks and groups the methods of a block, and finds the Pareto front of score and cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensorbench.reports.comparisons import Entrants, Statistic, level_column
from tensorbench.reports.evidence import Evidence
from tensorbench.reports.inference import orders
from tensorbench.reports.inference.effects import Effect, effect
from tensorbench.reports.inference.intervals import LEVEL, Array, simultaneous
from tensorbench.reports.inference.orders import Ranks
from tensorbench.reports.recipes import recipes
from tensorbench.reports.study import Cell, Study, grouped

#: The largest number of methods that are compared in pairs: the best by mean rank if there are more.
MOST_PAIRED = 20
#: The largest number of rivals against which `pareto` tests a cell: the best of the cells that cost no more.
MOST_RIVALS = 8

#: A function that returns the cost of a cell, or None if the cost is unknown.
CostOf = Callable[[Cell], float | None]


@dataclass(frozen=True)
class Ranking:
    """The order of the methods of a block."""

    #: The methods, best mean rank first.
    methods: tuple[str, ...]
    #: The ranks of `methods`. They have no intervals unless all methods are compared in pairs.
    ranks: Ranks
    #: The methods that are compared in pairs.
    paired: tuple[str, ...]
    #: A matrix over `paired`: 1 if the row is significantly better than the column, -1 if worse, otherwise 0.
    #: None if unknown.
    separations: NDArray[np.int64] | None
    #: A matrix like `separations` for each setting. Comparisons are simultaneous over settings. Empty for
    #: fewer than two methods.
    separations_on: tuple[NDArray[np.int64] | None, ...]
    #: For each of `paired`, the letters of the groups to which it belongs. The methods of a group are
    #: statistically indistinguishable. None if unknown.
    letters: tuple[str, ...] | None
    notes: tuple[str, ...]


def rank(entrants: Entrants) -> Ranking:
    """Ranks methods by mean score, and compares the best in pairs, on the seeds that both methods have."""
    study, cells, level = entrants.evidence.study, entrants.cells, entrants.level
    means = _means(study, list(cells.values()))
    order = np.argsort(orders.ranks(means, None).mean, kind="stable")
    methods = tuple(list(cells)[i] for i in order)
    means = means[:, order]
    paired = methods[:MOST_PAIRED]
    if len(paired) < 2:
        return Ranking(methods, orders.ranks(means, None), paired, None, (), None, ())
    notes = []
    if len(methods) > MOST_PAIRED:
        notes.append(
            f"Groups are of the {MOST_PAIRED} best of {len(methods)} methods by rank, and ranks have no "
            "interval."
        )
    pairs = _pairs(entrants.evidence, [cells[method] for method in paired])
    separations = orders.separations(pairs, len(paired), level)
    on_settings = tuple(
        orders.separations(
            [(i, j, difference.on([place])) for i, j, difference in pairs],
            len(paired),
            simultaneous(len(means), level),
        )
        for place in range(len(means))
    )
    letters = None
    if separations is None:
        notes.append(
            "No two methods share enough seeds on every setting: no rank has an interval, and no groups are "
            "known."
        )
    else:
        letters = tuple(orders.letters(separations != 0))
    ranks = orders.ranks(means, separations if len(paired) == len(methods) else None)
    return Ranking(methods, ranks, paired, separations, on_settings, letters, tuple(notes))


def _means(study: Study, cells: Sequence[Sequence[int]]) -> Array:
    """Mean scores (settings, methods) divided by the typical size of scores. Larger is better."""
    return np.array(
        [
            [float(study.gains([cell])[1].mean()) / study.size(cell) for cell in of_method]
            for of_method in cells
        ]
    ).T


def _pairs(evidence: Evidence, cells: Sequence[Sequence[int]]) -> list[tuple[int, int, Effect]]:
    """The indices and the difference of each pair of methods with common seeds on every setting."""
    return [
        (i, j, effect(parts))
        for i, first in enumerate(cells)
        for j, second in enumerate(cells[i + 1 :], i + 1)
        if (parts := evidence.on_settings(first, second))
    ]


def _lines(entrants: Entrants, ranking: Ranking) -> Iterator[dict[str, Any]]:
    ranks, letters = ranking.ranks, ranking.letters or ()
    for i, method in enumerate(ranking.methods):
        yield {
            "method": method,
            "mean_rank": ranks.mean[i],
            "rank": ranks.place[i],
            "low": None if ranks.low is None else ranks.low[i],
            "high": None if ranks.high is None else ranks.high[i],
            **level_column(entrants.level),
            "groups": letters[i] if i < len(letters) else None,
            "cells": ";".join(map(str, entrants.cells[method])),
        }


RANKS = Statistic("ranks", rank, _lines)


# --- score against cost ---


def pareto(evidence: Evidence, cells: Iterable[Cell], cost: CostOf) -> list[Cell]:
    """The cells on the Pareto front of score and cost, from cheapest to costliest on each setting.

    A cell is on the front if all its seeds have finished, its cost is known, and no other cell beats it. A
    cell beats another of the same setting and recipe if it costs no more and is significantly better. The
    tests of a cell against its rivals are one-sided, and simultaneous at 95%.
    """
    recipe_of = {number: frozenset(recipe.items()) for number, recipe in recipes(evidence.study).items()}
    front: list[Cell] = []
    for points in by_cost(cells, cost):
        beaten: set[int] = set()
        for alike in grouped(points, lambda point: recipe_of.get(point[1].number)).values():
            beaten |= _beaten(evidence, alike)
        front += [cell for _, cell in points if cell.number not in beaten]
    return front


def _beaten(evidence: Evidence, points: Sequence[tuple[float, Cell]]) -> set[int]:
    """The numbers of the cells that are beaten by another of these cells (see `pareto`).

    `points` are pairs of a cost and a cell, from cheapest to costliest.
    """
    beaten: set[int] = set()
    # The best cells so far, one more than there are rivals, since a cell is no rival of itself.
    best: list[tuple[float, Cell]] = []
    candidates = -1
    for _, of_cost in groupby(points, itemgetter(0)):
        equal = [(cell.gain or 0.0, cell) for _, cell in of_cost]
        candidates += len(equal)
        best = sorted([*best, *equal], key=lambda entry: -entry[0])[: MOST_RIVALS + 1]
        for gain, cell in equal:
            rivals = [entry for entry in best if entry[1] is not cell][:MOST_RIVALS]
            if any(_beats(evidence, rival, (gain, cell), candidates) for rival in rivals):
                beaten.add(cell.number)
    return beaten


def best_means(cells: Iterable[Cell], cost: CostOf) -> list[Cell]:
    """The cells on the Pareto front of mean score and cost, without regard to noise.

    A complete cell is on the front if it is better than all other cells of its setting that cost no more. If
    several cells are equal in cost and mean, all of them are kept. Cells of unknown cost are left out. The
    cells of each setting are ordered from cheapest to costliest.
    """
    best: list[Cell] = []
    for points in by_cost(cells, cost):
        last: tuple[float, float] | None = None
        for own_cost, cell in points:
            # The same trials may belong to two budgets. Then both cells are among the best.
            if last is None or (cell.gain or 0.0) > last[1] or (own_cost, cell.gain) == last:
                last = (own_cost, cell.gain or 0.0)
                best.append(cell)
    return best


def by_cost(cells: Iterable[Cell], cost: CostOf) -> list[list[tuple[float, Cell]]]:
    """The complete cells of each setting with their costs, from cheapest to costliest.

    Of cells with equal cost, the best comes first. Cells of unknown cost are left out.
    """
    points = [
        (own_cost, cell)
        for cell in cells
        if cell.complete and cell.gain is not None and (own_cost := cost(cell)) is not None
    ]
    return [
        sorted(of_setting, key=lambda point: (point[0], -(point[1].gain or 0.0)))
        for of_setting in grouped(points, lambda point: point[1].setting).values()
    ]


def _beats(evidence: Evidence, other: tuple[float, Cell], own: tuple[float, Cell], claims: int) -> bool:
    """Whether `other` is significantly better than `own`. Each is a score (larger is better) with its cell.

    The test is simultaneous over `claims` comparisons.
    """
    if other[0] <= own[0]:
        return False
    part = evidence.on_setting((other[1].number, own[1].number))
    one_sided = LEVEL ** (1 / claims)
    interval = effect([part]).interval(2 * one_sided - 1) if part else None
    return interval is not None and interval[0] > 0
