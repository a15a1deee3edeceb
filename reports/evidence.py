"""The scores of runs, with what each test example contributed where predictions are stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.metrics import bounds
from bench.wire.record import Record
from bench.wire.words import Tag
from reports.inference.crossed import (
    OnSetting,
    lottery,
    of_groups,
    of_groups_and_examples,
    of_seeds,
    of_seeds_and_examples,
)
from reports.inference.intervals import Array
from reports.predictions import ByExample, Run, contributions
from reports.study import Cell, Study, grouped
from reports.words import many

#: Runs whose predictions one report reads.
MOST_PREDICTIONS = 2000
#: Tuning trials whose predictions one report reads.
MOST_TUNING_TRIALS = 4000


class Evidence:
    """The runs of a study, as far as they were read."""

    def __init__(
        self,
        study: Study,
        answers: Mapping[str, ByExample],
        notes: Sequence[str],
        tuning: Mapping[int, float],
    ) -> None:
        self.study = study
        self._answers = answers
        #: What tuning adds to the variance of a mean score, by cell; of a cell without tuning nothing.
        self.tuning = tuning
        #: What whoever reads the report must know of it.
        self.notes = tuple(notes)

    def on_setting(self, cells: tuple[int, int]) -> OnSetting | None:
        """The first of two cells of one setting less the second, over the seeds that both have; None where
        there is none. More is better in any case.
        """
        seeds, gains = self.study.gains(cells)
        if not seeds:
            return None
        found = _on_setting(np.subtract(*gains), [self.of_runs(cell, seeds) for cell in cells])
        tuning = sum(self.tuning.get(cell, 0.0) for cell in cells)
        return scaled(found, self.study, cells[0], tuning)

    def of_runs(self, cell: int, seeds: Sequence[int]) -> list[ByExample] | None:
        """What each run of these seeds of a cell contributed, with the sign turned where less is better;
        None where that is not known of all.
        """
        trial = {seed.seed: seed.trial_id for seed in self.study.finished(cell)}
        found = [self._answers.get(trial[seed]) for seed in seeds]
        sign = self.study.direction(cell)
        known = [replace(run, values=sign * run.values) for run in found if run is not None]
        return known if len(known) == len(found) else None


def scaled(part: OnSetting, study: Study, cell: int, tuning: float = 0.0) -> OnSetting:
    """With what tuning adds, what scores of this cell's metric are large or small beside, and how far two can
    be apart.
    """
    low, high = bounds(study.all_cells[cell].metric)
    return replace(part, tuning=tuning, size=study.size(cell), limit=high - low)


def _on_setting(values: Array, found: Sequence[list[ByExample] | None]) -> OnSetting:
    """`values` (seeds,), the first side less the second, with the runs of both where they are known."""
    known = [some for some in found if some is not None]
    if len(known) < len(found) or any(
        len({run.test_set for run in runs}) > 1 for runs in zip(*known, strict=True)
    ):
        return of_seeds(values)
    runs = [run for some in known for run in some]
    if len({run.test_set for run in runs}) > 1:
        # Each seed has test examples of its own: its score varies with them already.
        return replace(of_seeds(values), count=len(runs[0].values))
    return of_seeds_and_examples(values, np.subtract(*map(_table, known)), runs[0].test_set)


def _table(runs: Sequence[ByExample]) -> Array:
    """(seeds, examples)"""
    return np.stack([run.values for run in runs]).astype(float)


@dataclass(frozen=True)
class Between:
    """How much better a cell of a second study is than that of a first on the same setting."""

    #: The seeds that both have, and their differences (seeds,); where there are none, all seeds of either
    #: side are compared.
    seeds: tuple[int, ...]
    differences: Array
    part: OnSetting


def between(before: Evidence, after: Evidence, cells: tuple[int, int]) -> Between | None:
    """None where one side has no finished run. `cells`: the number of the cell in either study."""
    sides = list(zip((before, after), cells, strict=True))
    (known_x, (x,)), (known_y, (y,)) = (side.study.gains([cell]) for side, cell in sides)
    if not len(x) or not len(y):
        return None
    tuned = [side.study.all_cells[cell].tuning for side, cell in sides]
    tuning = 0.0
    # One tuning that both have chose the same point for both.
    if len({entry and entry.ids for entry in tuned}) > 1:
        tuning = sum(side.tuning.get(cell, 0.0) for side, cell in sides)
    if common := sorted({*known_x} & {*known_y}):
        differences = y[np.isin(known_y, common)] - x[np.isin(known_x, common)]
        found = [side.of_runs(cell, common) for side, cell in reversed(sides)]
        part = _on_setting(differences, found)
        return Between(tuple(common), differences, scaled(part, before.study, cells[0], tuning))
    known = [
        runs
        for (side, cell), seeds in zip(sides, (known_x, known_y), strict=True)
        if (runs := side.of_runs(cell, seeds)) is not None
    ]
    part = _of_groups(y, x, known[::-1])
    return Between((), np.empty(0), scaled(part, before.study, cells[0], tuning))


def _of_groups(one: Array, other: Array, known: Sequence[list[ByExample]]) -> OnSetting:
    """The first side less the second, with the runs behind them where they are known of both."""
    tested = Counter(run.test_set for runs in known for run in runs)
    if len(known) < 2 or 1 < len(tested) < tested.total():
        return of_groups(one, other)
    if len(tested) > 1:
        # Each run has test examples of its own: its score varies with them already.
        return replace(of_groups(one, other), count=len(known[0][0].values))
    return of_groups_and_examples(one, other, [_table(runs) for runs in known])


def gather(study: Study, cells: Iterable[int]) -> Evidence:
    """Reads the predictions of these cells, of the first of them if there are too many runs, and of their
    tuning.
    """
    numbers = list(dict.fromkeys(cells))
    wanted = [cell for number in numbers if (cell := study.all_cells[number]).metric]
    runs: dict[str, Run] = {}
    taken = 0
    for cell in wanted:
        size = study.size(cell.number)
        more = {
            seed.trial_id: Run(seed.experiment, cell.task, cell.metric, seed.score, size)
            for seed in study.finished(cell.number)
        }
        if len(runs | more) > MOST_PREDICTIONS:
            break
        runs |= more
        taken += 1
    found = contributions(study, runs)
    tuning, notes = lotteries(study, numbers)
    if taken < len(wanted):
        notes.append(
            f"Test examples count in the first {taken:,} of {len(wanted):,} cells: a report reads the "
            f"predictions of {MOST_PREDICTIONS:,} runs at most. Intervals of the others are of seeds alone."
        )
    if found.unreadable:
        notes.append(
            f"Predictions of {many(found.unreadable, 'run')} are not stored or cannot be read: intervals "
            "with them are of seeds alone, and narrower than they should be."
        )
    if found.wrong:
        notes.append(
            f"Predictions of {many(found.wrong, 'run')} do not give the score that is stored: intervals with "
            "them are of seeds alone, and narrower than they should be."
        )
    if found.silent:
        notes.append(
            f"Predictions of {many(found.silent, 'run')} are partly no numbers: they count as wrong answers, "
            "in the scores and in all that is claimed from them."
        )
    return Evidence(study, found.by_trial, notes, tuning)


# --- the tuning lottery ---


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
