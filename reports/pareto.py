"""The cells that no other beats for certain at no more cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from reports.evidence import Evidence
from reports.inference.effects import effect
from reports.inference.intervals import LEVEL
from reports.recipes import recipes
from reports.study import Cell, grouped

#: The best of those that cost no more are tried: who does not fall to them falls to nobody.
MOST_RIVALS = 8

#: What a cell costs; None where that is not known.
CostOf = Callable[[Cell], float | None]


def pareto(evidence: Evidence, cells: Iterable[Cell], cost: CostOf) -> list[Cell]:
    """The complete cells than which no other of their setting is better for certain at no more cost; setting
    by setting, from cheap to dear.

    Better for certain: the lower limits of all differences from those that cost no more hold at once with 95%
    for the cell, which is above zero for one of them. Where there is no noise to go by nothing is certain.
    Only cells that were made alike beat one another.
    """
    made = {number: frozenset(recipe.items()) for number, recipe in recipes(evidence.study).items()}
    front: list[Cell] = []
    for points in by_cost(cells, cost):
        for of_cell, cell in points:
            others = [
                other
                for of_other, other in points
                if of_other <= of_cell
                and other is not cell
                and made.get(other.number) == made.get(cell.number)
            ]
            rivals = sorted(others, key=lambda other: -(other.gain or 0.0))[:MOST_RIVALS]
            if not any(_beats(evidence, rival, cell, len(others)) for rival in rivals):
                front.append(cell)
    return front


def best_means(cells: Iterable[Cell], cost: CostOf) -> list[Cell]:
    """The complete cells than which no other of their setting has as good a mean at less cost, or a better
    one at the same; setting by setting, from cheap to dear. It says nothing of chance.
    """
    best: list[Cell] = []
    for points in by_cost(cells, cost):
        last: tuple[float, float] | None = None
        for cost_of, cell in points:
            # The same trials may stand in two budgets: then both cells are among the best.
            if last is None or (cell.gain or 0.0) > last[1] or (cost_of, cell.gain) == last:
                last = (cost_of, cell.gain or 0.0)
                best.append(cell)
    return best


def by_cost(cells: Iterable[Cell], cost: CostOf) -> list[list[tuple[float, Cell]]]:
    """The complete cells with what they cost: a list a setting, from cheap to dear and the better first."""
    known = [
        (cost_of, cell)
        for cell in cells
        if cell.complete and cell.gain is not None and (cost_of := cost(cell)) is not None
    ]
    return [
        sorted(points, key=lambda point: (point[0], -(point[1].gain or 0.0)))
        for points in grouped(known, lambda point: point[1].setting).values()
    ]


def _beats(evidence: Evidence, other: Cell, cell: Cell, claims: int) -> bool:
    """Whether `other` is better for certain, as one of so many claims."""
    if (other.gain or 0.0) <= (cell.gain or 0.0):
        return False
    part = evidence.on_setting((other.number, cell.number))
    one_sided = LEVEL ** (1 / claims)
    interval = effect([part]).interval(2 * one_sided - 1) if part else None
    return interval is not None and interval[0] > 0
