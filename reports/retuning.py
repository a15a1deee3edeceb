"""The tuning lottery of the cells of a study, from their stored tuning trials."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from bench.store.records import Record
from bench.wire.words import Tag
from reports.contributions import ByExample, Run, contributions
from reports.inference.intervals import Array
from reports.inference.retuning import lottery
from reports.study import Cell, Study, grouped
from reports.words import many

#: Tuning trials whose predictions one report reads.
MOST_TUNING_TRIALS = 4000


def lotteries(study: Study, cells: Iterable[int]) -> tuple[dict[int, float], list[str]]:
    """What tuning adds to the variance of a mean score, for each of these cells that was tuned and whose
    tuning can be repeated; and notes on the others.

    A point's validation score errs by its validation examples, whose part is from stored predictions, and by
    its seeds, whose part is that of the final runs: most suites tune with a single seed. Choices are repeated
    by the score, whether the score or the loss had chosen.
    """
    every = (study.all_cells[number] for number in dict.fromkeys(cells))
    tuned = [cell for cell in every if cell.tuning and cell.finished > 1]
    stored = {
        id_: (each.name, record)
        for each in reversed(study.experiments)
        for id_, record in each.records.items()
    }
    runs: dict[str, Run] = {}
    for cell in tuned:
        more = {
            id_: Run(stored[id_][0], cell.task, cell.metric, score, study.size(cell.number))
            for id_ in _ids(cell)
            if id_ in stored and (score := stored[id_][1].score) is not None
        }
        if len(runs | more) > MOST_TUNING_TRIALS:
            break
        runs |= more
    by_trial = contributions(study, runs).by_trial
    records = {id_: record for id_, (_, record) in stored.items()}
    variances = {cell.number: _lottery(study, cell, records, by_trial) for cell in tuned}
    repeated = {number: variance for number, variance in variances.items() if variance is not None}
    return repeated, list(_notes(tuned, variances))


def _ids(cell: Cell) -> Sequence[str]:
    return cell.tuning.ids if cell.tuning else ()


def _lottery(
    study: Study, cell: Cell, records: Mapping[str, Record], by_trial: Mapping[str, ByExample]
) -> float | None:
    """None where a tuning trial, or its predictions, are not stored."""
    if not all(id_ in records for id_ in _ids(cell)):
        return None
    finished = [record for id_ in _ids(cell) if (record := records[id_]).score is not None]
    # The tag has the point behind the method's name.
    points = list(grouped(finished, lambda record: record.tag(Tag.METHOD)).values())
    # A point of which more seeds failed is never chosen.
    seeds = max(map(len, points), default=0)
    points = [point for point in points if len(point) == seeds]
    if len(points) < 2 or cell.sd is None:
        return 0.0
    noise = _of_examples([[by_trial.get(record.trial_id) for record in point] for point in points])
    if noise is None:
        return None
    scores = np.array([np.mean([record.score for record in point]) for point in points])
    return lottery(study.direction(cell.number) * scores, noise + cell.sd**2 / seeds * np.eye(len(points)))


def _of_examples(points: Sequence[Sequence[ByExample | None]]) -> Array | None:
    """The covariance (points, points) of mean scores over validation examples, from the runs of each point;
    None where it is not known of some.

    Each seed may have validation examples of its own.
    """
    noise = np.zeros((len(points), len(points)))
    for test_set in dict.fromkeys(run.test_set for run in points[0] if run):
        own = [[run.values for run in point if run and run.test_set == test_set] for point in points]
        if not all(own) or own[0][0].size < 2:
            return None
        table = np.array([np.sum(runs, axis=0) / len(point) for runs, point in zip(own, points, strict=True)])
        noise += np.cov(table.astype(float)) / table.shape[1]
    return noise if all(all(point) for point in points) else None


def _notes(tuned: Sequence[Cell], variances: Mapping[int, float | None]) -> Iterator[str]:
    if lost := sum(variance is None for variance in variances.values()):
        yield (
            f"The tuning of {many(lost, 'cell')} of {len(tuned):,} cannot be repeated, since its trials or "
            "their validation predictions are not stored or were not read. Their intervals take the chosen "
            "points as fixed and are too narrow."
        )
    if single := sum(cell.tuning is not None and cell.tuning.trials == 1 for cell in tuned):
        yield (
            f"{many(single, 'cell')} of {len(tuned):,} had a single point to choose from: tuning adds "
            "nothing to their intervals."
        )
