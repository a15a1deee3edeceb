"""Comparisons over resampled test examples, from the predictions that runs stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reports import statistics
from reports.artifacts import Predictions, predictions
from reports.comparisons import AgainstReference
from reports.statistics import Bounds
from reports.study import Study

#: Runs whose predictions one report reads.
MOST_PREDICTIONS = 2000


@dataclass(frozen=True)
class Resampled:
    """A method against the reference on one setting, over resampled seeds and test examples."""

    cell: int
    reference_cell: int
    seeds: int
    examples: int
    difference: float
    interval: Bounds


class _Pair(NamedTuple):
    """Two cells to compare, and the number of the budget that they stand under."""

    block: int
    cell: int
    reference: int


def resample(
    study: Study, blocks: Sequence[Sequence[AgainstReference]]
) -> tuple[list[tuple[Resampled, ...]], list[str]]:
    """Resamples the comparisons of each budget, setting by setting; returns also what was left out."""
    wanted = [
        _Pair(number, cell, reference)
        for number, block in enumerate(blocks)
        for comparison in block
        for cell, reference in zip(comparison.cells, comparison.reference_cells, strict=True)
        if study.all_cells[cell].metric in statistics.SCORES and len(study.scores([cell, reference])[0]) >= 2
    ]
    taken, experiment_of = _affordable(study, wanted)
    answers: dict[str, Predictions] = {}
    for experiment in study.experiments:
        ids = [trial for trial, name in experiment_of.items() if name == experiment.name]
        answers |= predictions(experiment, ids)
    found: list[list[Resampled]] = [[] for _ in blocks]
    unreadable = 0
    for pair in taken:
        paired = _paired_answers(study, answers, pair)
        if paired is None:
            unreadable += 1
            continue
        labels, x, y = paired
        metric = study.all_cells[pair.cell].metric
        difference, interval = statistics.bootstrap_examples(metric, labels, x, y)
        found[pair.block].append(
            Resampled(pair.cell, pair.reference, len(x), len(labels), difference, interval)
        )
    notes = []
    if len(taken) < len(wanted):
        notes.append(
            f"Test examples were resampled for the first {len(taken):,} of {len(wanted):,} comparisons: a "
            f"report reads the predictions of {MOST_PREDICTIONS:,} runs at most."
        )
    if unreadable:
        notes.append(
            f"{unreadable} comparison(s) lack resampled test examples: predictions are not stored, cannot be "
            "read, or are of other examples than the reference's."
        )
    return [tuple(some) for some in found], notes


def _affordable(study: Study, wanted: Sequence[_Pair]) -> tuple[Sequence[_Pair], dict[str, str]]:
    """The first pairs, as far as their predictions are not too many, and the experiments of their trials."""
    experiment_of: dict[str, str] = {}
    for taken, pair in enumerate(wanted):
        seeds = (*study.finished(pair.cell), *study.finished(pair.reference))
        more = experiment_of | {
            seed.trial_id: seed.experiment for seed in seeds if seed.trial_id not in experiment_of
        }
        if len(more) > MOST_PREDICTIONS:
            return wanted[:taken], experiment_of
        experiment_of = more
    return wanted, experiment_of


def _paired_answers(
    study: Study, answers: Mapping[str, Predictions], pair: _Pair
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None:
    """Labels (examples,) and what either cell answered with the seeds that both have, (seeds, examples); None
    where some are not to be had or are of other examples.
    """
    seeds, _ = study.scores([pair.cell, pair.reference])
    sides = []
    for cell in (pair.cell, pair.reference):
        trial = {seed.seed: seed.trial_id for seed in study.finished(cell)}
        if any(trial[seed] not in answers for seed in seeds):
            return None
        sides.append([answers[trial[seed]] for seed in seeds])
    first = sides[0][0]
    for answer in chain(*sides):
        same = np.array_equal(answer.examples, first.examples) and np.array_equal(answer.labels, first.labels)
        if not same:
            return None
    x, y = (np.stack([answer.answers for answer in side]) for side in sides)
    return first.labels, x, y
