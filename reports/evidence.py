"""The evidence behind comparisons: scores of runs, contributions of test examples, tuning variance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tensorbench.metrics import bounds
from tensorbench.records.record import Record
from tensorbench.records.words import Tag
from tensorbench.reports.inference.crossed import (
    OnSetting,
    lottery,
    of_seeds,
    of_seeds_and_examples,
)
from tensorbench.reports.inference.intervals import Array
from tensorbench.reports.predictions import ByExample, Run, contributions
from tensorbench.reports.study import Cell, Study, grouped
from tensorbench.reports.words import many

#: The largest numbers of runs, and of tuning trials, whose predictions a report reads.
MOST_PREDICTIONS, MOST_TUNING_TRIALS = 4000, 4000


class Evidence:
    """The scores of runs, the contributions of test examples, and the variance that tuning adds to scores."""

    def __init__(
        self,
        study: Study,
        by_example: Mapping[str, ByExample],
        notes: Sequence[str],
        tuning: Mapping[int, float],
    ) -> None:
        self.study = study
        #: The contributions of examples, by trial id.
        self._by_example = by_example
        #: The variance that tuning adds to a cell's mean score, by the cell's number. Cells that were not
        #: tuned, and cells whose variance is unknown, are absent.
        self.tuning = tuning
        #: Limits of the evidence, shown in the report's notes.
        self.notes = tuple(notes)

    def on_setting(self, cells: tuple[int, int]) -> OnSetting | None:
        """The first cell's scores minus the second's, on their setting and paired by seed.

        Positive if the first cell is better. None if the cells share no finished seed.
        """
        seeds, gains = self.study.gains(cells)
        if not seeds:
            return None
        part = paired(np.subtract(*gains), [self.of_runs(cell, seeds) for cell in cells])
        tuning = sum(self.tuning.get(cell, 0.0) for cell in cells)
        return scaled(part, self.study, cells[0], tuning)

    def on_settings(self, first: Sequence[int], second: Sequence[int]) -> list[OnSetting] | None:
        """The difference of two methods on each setting, as `on_setting` computes it.

        `first` and `second` have the methods' cells, one per setting. None if the two cells of some setting
        share no finished seed.
        """
        parts = [self.on_setting(pair) for pair in zip(first, second, strict=True)]
        shared = [part for part in parts if part is not None]
        return shared if len(shared) == len(parts) else None

    def of_runs(self, cell: int, seeds: Sequence[int]) -> list[ByExample] | None:
        """For each of these seeds of a cell, the contributions of test examples to its score.

        Larger is better. None if the contributions to some score are unknown.
        """
        trial = {seed.seed: seed.trial_id for seed in self.study.finished(cell)}
        sign = self.study.direction(cell)
        runs = [self._by_example.get(trial[seed]) for seed in seeds]
        stored = [replace(run, values=sign * run.values) for run in runs if run is not None]
        return stored if len(stored) == len(runs) else None


def scaled(part: OnSetting, study: Study, cell: int, tuning: float = 0.0) -> OnSetting:
    """Adds three numbers to a difference: its variance from tuning, and the size and the range of scores.

    The size is the typical size of scores on the cell's task. The range is that of the scores which the
    cell's metric allows.
    """
    low, high = bounds(study.metrics[cell])
    return replace(part, tuning=tuning, size=study.size(cell), limit=high - low)


def paired(differences: Array, sides: Sequence[list[ByExample] | None]) -> OnSetting:
    """The mean of paired differences (seeds,), with its error.

    `sides` has the contributions of test examples to each side's runs, or None if they are unknown. The error
    covers test examples if both sides' contributions are known and each pair of runs has the same examples.
    """
    stored = [runs for runs in sides if runs is not None]
    if len(stored) < len(sides) or any(
        len({run.test_set for run in pair}) > 1 for pair in zip(*stored, strict=True)
    ):
        return of_seeds(differences)
    runs = [run for side in stored for run in side]
    if len({run.test_set for run in runs}) > 1:
        # Each seed has its own test examples, so scores already vary with them.
        return replace(of_seeds(differences), count=len(runs[0].values))
    return of_seeds_and_examples(differences, np.subtract(*map(_table, stored)), runs[0].test_set)


def _table(runs: Sequence[ByExample]) -> Array:
    """The contributions to all these runs, as an array (seeds, examples)."""
    return np.stack([run.values for run in runs]).astype(float)


# --- reading ---


def gather(study: Study, cells: Iterable[int]) -> Evidence:
    """Reads the predictions of these cells' finished runs and of their tuning trials.

    It reads at most `MOST_PREDICTIONS` runs and `MOST_TUNING_TRIALS` tuning trials. Notes say if some were
    left out.
    """
    numbers = list(dict.fromkeys(cells))
    scored = [cell for number in numbers if (cell := study.all_cells[number]).metric]
    runs: dict[str, Run] = {}
    taken = 0
    for cell in scored:
        size = study.size(cell.number)
        more = {
            seed.trial_id: Run(seed.experiment, cell.task, cell.metric, seed.score, size)
            for seed in study.finished(cell.number)
        }
        if len(runs | more) > MOST_PREDICTIONS:
            break
        runs |= more
        taken += 1
    stored = contributions(study.experiments, runs)
    tuning, notes = lotteries(study, numbers)
    if taken < len(scored):
        notes.append(
            f"Test examples count in the first {taken:,} of {len(scored):,} cells: a report reads the "
            f"predictions of {MOST_PREDICTIONS:,} runs at most. Intervals of the others are of seeds alone."
        )
    narrow = "intervals with them are of seeds alone, and narrower than they should be."
    if stored.unreadable:
        notes.append(
            f"Predictions of {many(stored.unreadable, 'run')} are not stored or cannot be read: {narrow}"
        )
    if stored.wrong:
        notes.append(
            f"Predictions of {many(stored.wrong, 'run')} do not give the score that is stored: {narrow}"
        )
    if stored.silent:
        notes.append(
            f"Predictions of {many(stored.silent, 'run')} are partly NaN or missing: they count as wrong "
            "answers, in the scores and in all that is claimed from them."
        )
    return Evidence(study, stored.by_trial, notes, tuning)


# --- variance from tuning ---


def lotteries(study: Study, cells: Iterable[int]) -> tuple[dict[int, float], list[str]]:
    """Estimates the variance that tuning adds to a cell's mean score.

    Returns the variance of each tuned cell with at least two finished seeds, by the cell's number, and notes.
    Cells whose variance is unknown are absent, and a note counts them. Another note counts cells tuned with a
    single trial.

    The estimate repeats the choice of the best point many times, each time with new random errors in the
    points' validation scores. The choice is by validation score, even if the suite chose by validation loss.
    The variance of the errors has two sources. That of validation examples is estimated from stored
    predictions. That of seeds is estimated from the final runs, because most suites tune with a single seed.
    """
    every = (study.all_cells[number] for number in dict.fromkeys(cells))
    tuned = [cell for cell in every if cell.tuning and cell.finished > 1]
    stored = {
        id_: (experiment.name, record)
        for experiment in reversed(study.experiments)
        for id_, record in experiment.records.items()
    }
    runs: dict[str, Run] = {}
    for cell in tuned:
        more = {
            id_: Run(stored[id_][0], cell.task, cell.metric, score, study.size(cell.number))
            for id_ in _tuning_ids(cell)
            if id_ in stored and (score := stored[id_][1].score) is not None
        }
        if len(runs | more) > MOST_TUNING_TRIALS:
            break
        runs |= more
    by_trial = contributions(study.experiments, runs).by_trial
    records = {id_: record for id_, (_, record) in stored.items()}
    variances = {cell.number: _lottery(study, cell, records, by_trial) for cell in tuned}
    estimated = {number: variance for number, variance in variances.items() if variance is not None}
    return estimated, list(_tuning_notes(tuned, len(variances) - len(estimated)))


def _tuning_ids(cell: Cell) -> Sequence[str]:
    return cell.tuning.ids if cell.tuning else ()


def _lottery(
    study: Study, cell: Cell, records: Mapping[str, Record], by_trial: Mapping[str, ByExample]
) -> float | None:
    """The variance that tuning adds to a cell's mean score.

    0 if tuning could choose among fewer than two points. None if a tuning trial is not stored, or if
    `_of_examples` returns None for the points.
    """
    if not all(id_ in records for id_ in _tuning_ids(cell)):
        return None
    finished = [record for id_ in _tuning_ids(cell) if (record := records[id_]).score is not None]
    # The tag has the point after the method's name.
    points = list(grouped(finished, lambda record: record.tag(Tag.METHOD)).values())
    # Points with failed seeds cannot be chosen.
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
    """The covariance (points, points) that validation examples cause between the points' mean scores.

    For each point, `points` has the contributions of examples to each run. None if the contributions to some
    run are unknown, if the points have different validation examples, or if they have fewer than two.
    """
    noise = np.zeros((len(points), len(points)))
    for test_set in dict.fromkeys(run.test_set for run in points[0] if run):
        own = [[run.values for run in point if run and run.test_set == test_set] for point in points]
        if not all(own) or own[0][0].size < 2:
            return None
        table = np.array([np.sum(runs, axis=0) / len(point) for runs, point in zip(own, points, strict=True)])
        noise += np.cov(table.astype(float)) / table.shape[1]
    return noise if all(all(point) for point in points) else None


def _tuning_notes(tuned: Sequence[Cell], unknown: int) -> Iterator[str]:
    if unknown:
        yield (
            f"The tuning of {many(unknown, 'cell')} of {len(tuned):,} cannot be repeated, since its trials "
            "or their validation predictions are not stored or were not read. Their intervals take the "
            "chosen points as fixed and are too narrow."
        )
    if single := sum(cell.tuning is not None and cell.tuning.trials == 1 for cell in tuned):
        yield (
            f"{many(single, 'cell')} of {len(tuned):,} had a single point to choose from: tuning adds "
            "nothing to their intervals."
        )
