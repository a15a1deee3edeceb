"""Ranks of the methods of a budget, groups that cannot be told apart, and profiles of their runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reports.evidence import Evidence
from reports.inference import orders
from reports.inference.effects import Effect, effect
from reports.inference.intervals import LEVEL, Array, simultaneous
from reports.inference.orders import Ranks
from reports.recipes import PER_METHOD, TUNING, Recipe, difference, recipes
from reports.study import CEILING, FLOOR, Cell, Study, TaskAndBackbone, grouped

#: The best of those that cost no more are tried: who does not fall to them falls to nobody.
MOST_RIVALS = 8
#: What a cell costs; None where that is not known.
CostOf = Callable[[Cell], float | None]

#: Methods of a block in its pairwise comparisons; of more, the best by mean rank.
MOST_PAIRED = 20


@dataclass(frozen=True)
class Ranking:
    """How the methods of a budget stand to one another."""

    #: Best mean rank first.
    methods: tuple[str, ...]
    #: Their ranks, in the same order; intervals are of the methods that are compared pair by pair.
    ranks: Ranks
    #: The methods that are compared pair by pair.
    paired: tuple[str, ...]
    #: 1 where the row is better than the column for certain, -1 where worse; None where nothing is known.
    separations: NDArray[np.int64] | None
    #: The same on each setting, in the order of the settings: all of it at once.
    separations_on: tuple[NDArray[np.int64] | None, ...]
    #: Letters of the groups that cannot be told apart; None where there is too little data to tell any.
    letters: tuple[str, ...] | None
    notes: tuple[str, ...]


def rank(evidence: Evidence, cells: Mapping[str, Sequence[int]], level: float = LEVEL) -> Ranking:
    """Ranks methods by the means of their runs, and tells them apart by the seeds that two of them share.

    `cells`: those of each method, one a setting. `level`: what all that is told apart holds at once with.
    """
    study = evidence.study
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
    pairs = _pairs(evidence, [cells[method] for method in paired])
    apart = orders.separations(pairs, len(paired), level)
    on_settings = simultaneous(len(means), level)
    alone = tuple(
        orders.separations(
            [(i, j, effect([found.parts[k]])) for i, j, found in pairs], len(paired), on_settings
        )
        for k in range(len(means))
    )
    letters = None
    if apart is None:
        notes.append(
            "No two methods share enough seeds on every setting: no rank has an interval, and no two are "
            "told apart."
        )
    else:
        letters = tuple(orders.letters(apart != 0))
    found = orders.ranks(means, apart if len(paired) == len(methods) else None)
    return Ranking(methods, found, paired, apart, alone, letters, tuple(notes))


def _means(study: Study, cells: Sequence[Sequence[int]]) -> Array:
    """Mean scores (settings, methods) over their size, more being better."""
    means = [[_mean(study, cell) / study.size(cell) for cell in some] for some in cells]
    return np.array(means).T


def _pairs(evidence: Evidence, cells: Sequence[Sequence[int]]) -> list[tuple[int, int, Effect]]:
    """The effects of all pairs that share a seed on every setting."""
    found = []
    for i, one in enumerate(cells):
        for j in range(i + 1, len(cells)):
            parts = [evidence.on_setting(pair) for pair in zip(one, cells[j], strict=True)]
            known = [part for part in parts if part is not None]
            if len(known) == len(parts):
                found.append((i, j, effect(known)))
    return found


def normalise(
    study: Study,
    settings: Sequence[TaskAndBackbone],
    cells: Mapping[str, Sequence[int]],
    made: Mapping[int, Recipe],
    threshold: float,
) -> dict[str, Array]:
    """The scores of each method's runs between head only, 0, and full fine-tuning, 1.

    Empty where one of these two is missing on some setting, or they are less than `threshold` apart there.

    `cells`: those of each method, one a setting. Their rates may be other ones: they are ends, and nothing is
    said of them.
    """
    first = next(iter(cells.values()), ())
    floors, ceilings = (_ends_of(study, family, first, made) for family in (FLOOR, CEILING))
    if not all(setting in floors and setting in ceilings for setting in settings):
        return {}
    low, high = (np.array([_mean(study, of[setting]) for setting in settings]) for of in (floors, ceilings))
    if (high - low < threshold).any():
        return {}
    return {
        method: np.concatenate(
            [
                (study.gains([cell])[1][0] - base) / gap
                for cell, base, gap in zip(of_method, low, high - low, strict=True)
            ]
        )
        for method, of_method in cells.items()
    }


def _mean(study: Study, cell: int) -> float:
    return float(study.gains([cell])[1].mean())


def _ends_of(
    study: Study, family: str, cells: Sequence[int], made: Mapping[int, Recipe]
) -> dict[TaskAndBackbone, int]:
    """The first cell of a family on each setting that was made as these cells were, but for its rates."""
    found: dict[TaskAndBackbone, int] = {}
    for number in cells:
        setting = study.all_cells[number].setting
        for cell in study.all_cells:
            if (cell.family, cell.setting) != (family, setting) or not cell.finished or setting in found:
                continue
            differs = difference(made[cell.number], made[number])
            if all(key in PER_METHOD or key.startswith(TUNING) for key in differs):
                found[setting] = cell.number
    return found


# --- score against cost ---


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
