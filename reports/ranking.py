"""Ranks of the methods of a budget, groups that cannot be told apart, and profiles of their runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reports.evidence import Evidence
from reports.inference import orders
from reports.inference.effects import Effect, effect
from reports.inference.intervals import LEVEL, Array, simultaneous
from reports.inference.orders import Ranks
from reports.mixtures import PER_METHOD
from reports.recipes import TUNING, Recipe, difference
from reports.study import CEILING, FLOOR, Study, TaskAndBackbone

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
