"""Ranks of the methods of a budget, groups that cannot be told apart, and normalised scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reports import statistics
from reports.statistics import ALPHA, Aggregate, Array, Ranks
from reports.study import CEILING, FLOOR, Study, TaskAndBackbone
from reports.words import listed, many

#: Methods of a block in its pairwise comparisons; of more, the best by mean rank.
MOST_PAIRED = 20


@dataclass(frozen=True)
class Ranking:
    """How the methods of a budget stand to one another."""

    #: Best mean rank first.
    methods: tuple[str, ...]
    #: Their ranks, in the same order.
    ranks: Ranks
    #: The methods that are compared pair by pair, and P(row beats column); None where there is no pair.
    paired: tuple[str, ...]
    better: Array | None
    #: Letters of the groups that cannot be told apart; None where there is too little data to tell any.
    letters: tuple[str, ...] | None
    notes: tuple[str, ...]


def rank(study: Study, cells: Mapping[str, Sequence[int]]) -> Ranking:
    """Ranks methods by the seeds that all of them share. `cells`: those of each method, one a setting."""
    tables = _tables(study, list(cells.values()))
    seeds = min(table.shape[1] for table in tables)
    found = statistics.ranks(tables)
    order = np.argsort(found.mean, kind="stable")
    methods = tuple(list(cells)[i] for i in order)
    ranks = Ranks(
        found.mean[order],
        None if found.low is None else found.low[order],
        None if found.high is None else found.high[order],
    )
    notes = []
    if seeds < 2:
        notes.append("One seed: no interval, no test and no group can be given.")
    elif ranks.low is None:
        notes.append(
            f"Fewer than {statistics.LEAST_RESAMPLED} seeds: intervals of ranks, P(better) and normalised "
            "scores would be far too narrow, and are not given."
        )
    paired = methods[:MOST_PAIRED]
    if len(paired) < 2:
        return Ranking(methods, ranks, paired, None, None, tuple(notes))
    if len(methods) > MOST_PAIRED:
        notes.append(f"Groups and P(better) are of the {MOST_PAIRED} best of {len(methods)} methods by rank.")
    tables = _tables(study, [cells[method] for method in paired])
    letters, untold = (None, []) if seeds < 2 else _groups(tables)
    better = statistics.better_matrix(tables)
    return Ranking(methods, ranks, paired, better, letters, (*notes, *untold))


def _tables(study: Study, cells: Sequence[Sequence[int]]) -> list[Array]:
    """For each setting the scores (methods, seeds) of the seeds that all methods share."""
    return [study.scores(of_setting)[1] for of_setting in zip(*cells, strict=True)]


def _groups(tables: Sequence[Array]) -> tuple[tuple[str, ...] | None, list[str]]:
    """The letters of groups that cannot be told apart, or why there are none."""
    methods = len(tables[0])
    pairs = methods * (methods - 1) // 2
    seed_pairs = sum(table.shape[1] for table in tables)
    least = statistics.smallest_p(seed_pairs)
    if least * pairs > ALPHA:
        return None, [
            f"Too little data to tell any two methods apart: over {seed_pairs} seed "
            f"pairs the smallest p, corrected for {many(pairs, 'pair')}, is {min(1, least * pairs):.2g}."
        ]
    p = statistics.pairwise_p(tables)
    upper = np.triu_indices(methods, 1)
    separable = np.zeros(p.shape, dtype=bool)
    separable[upper] = np.array(statistics.holm(list(p[upper]))) < ALPHA
    return tuple(statistics.letters(separable | separable.T)), []


def normalise(
    study: Study,
    settings: Sequence[TaskAndBackbone],
    cells: Mapping[str, Sequence[int]],
    threshold: float,
) -> tuple[dict[str, Aggregate], list[str]]:
    """Each method's scores between head only and full fine-tuning, and what was left out.

    `cells`: those of each method, one a setting. A setting on which these two are less than `threshold`
    apart is left out.
    """
    ends: list[list[float]] = []
    for family, called in ((FLOOR, "head only"), (CEILING, "full fine-tuning")):
        means = _means(study, family)
        if lacking := [setting for setting in settings if setting not in means]:
            return {}, [f"No normalised score: {called} is not there, or incomplete, on {listed(lacking)}."]
        ends.append([means[setting] for setting in settings])
    floors, ceilings = ends
    kept = [i for i in range(len(settings)) if ceilings[i] - floors[i] >= threshold]
    notes = []
    if len(kept) < len(settings):
        out = listed(setting for i, setting in enumerate(settings) if i not in kept)
        notes.append(
            f"Full fine-tuning exceeds head only by less than {threshold:g} on {out}: not in the normalised "
            "score."
        )
    if not kept:
        return {}, notes
    aggregates = {
        method: statistics.aggregate(
            [study.scores([of_setting[i]])[1][0] for i in kept],
            [floors[i] for i in kept],
            [ceilings[i] for i in kept],
        )
        for method, of_setting in cells.items()
    }
    return aggregates, notes


def _means(study: Study, family: str) -> dict[TaskAndBackbone, float]:
    """The mean of the first complete cell of a family on each setting."""
    means: dict[TaskAndBackbone, float] = {}
    for cell in study.all_cells:
        if cell.family == family and cell.complete and cell.mean is not None:
            means.setdefault(cell.setting, cell.mean)
    return means
