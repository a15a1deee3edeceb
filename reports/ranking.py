"""Ranks of the methods of a budget, groups that cannot be told apart, and normalised scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from reports.evidence import Evidence
from reports.inference import normalised, orders
from reports.inference.chances import better_matrix
from reports.inference.crossed import OnSetting
from reports.inference.effects import Effect, effect
from reports.inference.intervals import LEVEL, Array
from reports.inference.normalised import Aggregate, aggregate
from reports.inference.orders import Ranks
from reports.mixtures import PER_METHOD
from reports.recipes import Recipe, difference
from reports.study import CEILING, FLOOR, Study, TaskAndBackbone
from reports.words import listed

#: Methods of a block in its pairwise comparisons; of more, the best by mean rank.
MOST_PAIRED = 20


@dataclass(frozen=True)
class Ranking:
    """How the methods of a budget stand to one another."""

    #: Best mean rank first.
    methods: tuple[str, ...]
    #: Their ranks, in the same order; intervals are of the methods that are compared pair by pair.
    ranks: Ranks
    #: The methods that are compared pair by pair, and P(row beats column); None where there is no pair.
    paired: tuple[str, ...]
    better: Array | None
    #: 1 where the row is better than the column for certain, -1 where worse; None where nothing is known.
    separations: NDArray[np.int64] | None
    #: The same on each setting alone, in the order of the settings.
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
        return Ranking(methods, orders.ranks(means, None), paired, None, None, (), None, ())
    notes = []
    if len(methods) > MOST_PAIRED:
        notes.append(
            f"Groups and P(better) are of the {MOST_PAIRED} best of {len(methods)} methods by rank, and "
            "ranks have no interval."
        )
    pairs = _pairs(evidence, [cells[method] for method in paired])
    apart = orders.separations(pairs, len(paired), level)
    alone = tuple(
        orders.separations([(i, j, effect([found.parts[k]])) for i, j, found in pairs], len(paired), level)
        for k in range(len(means))
    )
    letters = None
    if apart is None:
        notes.append(
            "No two methods share two seeds on every setting: no rank has an interval, and no two are "
            "told apart."
        )
    else:
        letters = tuple(orders.letters(apart != 0))
    scores = [[study.gains([cell])[1][0] for cell in cells[method]] for method in paired]
    found = orders.ranks(means, apart if len(paired) == len(methods) else None)
    return Ranking(methods, found, paired, better_matrix(scores), apart, alone, letters, tuple(notes))


def _means(study: Study, cells: Sequence[Sequence[int]]) -> Array:
    """Mean scores (settings, methods) over their size, more being better."""
    means = [[study.gains([cell])[1].mean() / study.size(cell) for cell in some] for some in cells]
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


@dataclass(frozen=True)
class _Ends:
    """What a setting's normalised scores are 0 and 1 at."""

    floor: int
    ceiling: int
    #: Mean of the floor, and how far the ceiling is above it.
    base: float
    gap: float


def normalise(
    evidence: Evidence,
    settings: Sequence[TaskAndBackbone],
    cells: Mapping[str, Sequence[int]],
    made: Mapping[int, Recipe],
    threshold: float,
) -> tuple[dict[str, Aggregate], list[str]]:
    """Each method's scores between head only and full fine-tuning, and what was left out.

    `cells`: those of each method, one a setting. A setting on which these two are less than `threshold`
    apart is left out. Their rates may be other ones: they are ends, and nothing is said of them.
    """
    study = evidence.study
    numbers: list[dict[TaskAndBackbone, int]] = []
    for family, called in ((FLOOR, "head only"), (CEILING, "full fine-tuning")):
        found = _ends_of(study, family, next(iter(cells.values()), ()), made)
        if lacking := [setting for setting in settings if setting not in found]:
            return {}, [
                f"No normalised score: {called} is not there, or made otherwise, on {listed(lacking)}."
            ]
        numbers.append(found)
    ends = [_ends(study, numbers[0][setting], numbers[1][setting]) for setting in settings]
    kept = [i for i, end in enumerate(ends) if end.gap >= threshold]
    notes = []
    if len(kept) < len(settings):
        out = listed(setting for i, setting in enumerate(settings) if i not in kept)
        notes.append(
            f"Full fine-tuning exceeds head only by less than {threshold:g} on {out}: not in the normalised "
            "score."
        )
    if not kept:
        return {}, notes
    return {
        method: _aggregate(evidence, [of_method[i] for i in kept], [ends[i] for i in kept])
        for method, of_method in cells.items()
    }, notes


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
            if not set(difference(made[cell.number], made[number])) - {*PER_METHOD, "tuning"}:
                found[setting] = cell.number
    return found


def _ends(study: Study, floor: int, ceiling: int) -> _Ends:
    low, high = (float(study.gains([cell])[1].mean()) for cell in (floor, ceiling))
    return _Ends(floor, ceiling, low, high - low)


def _aggregate(evidence: Evidence, cells: Sequence[int], ends: Sequence[_Ends]) -> Aggregate:
    runs: list[Array] = []
    parts: list[OnSetting | None] = []
    for cell, end in zip(cells, ends, strict=True):
        scores = (evidence.study.gains([cell])[1][0] - end.base) / end.gap
        varies = partial(normalised.remainder, share=float(scores.mean()), gap=end.gap)
        runs.append(scores)
        part = evidence.on_setting([cell, end.floor, end.ceiling], varies)
        # A normalised score has no units.
        parts.append(part and replace(part, size=1.0))
    return aggregate(runs, parts)
