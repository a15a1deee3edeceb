"""The scores of runs, with what each test example contributed where predictions are stored."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bench.metrics import METRICS, Metric, bounds
from reports.artifacts import Predictions, predictions
from reports.inference.crossed import (
    OnSetting,
    of_groups,
    of_groups_and_examples,
    of_seeds,
    of_seeds_and_examples,
)
from reports.inference.intervals import Array
from reports.study import Cell, Seed, Study
from reports.words import many

#: Runs whose predictions one report reads.
MOST_PREDICTIONS = 2000
#: How far the score of stored predictions may be from the stored score, as a share of it, or of what scores
#: of its task come to where that is more: older stores have it in float32.
AGREES = 1e-4


@dataclass(frozen=True)
class ByExample:
    """What each test example (examples,) contributed to the score of one run."""

    #: The same for runs that were tested on the same examples.
    test_set: str
    values: NDArray[np.float32]


class Evidence:
    """The runs of a study, as far as they were read."""

    def __init__(self, study: Study, answers: dict[str, ByExample], notes: Sequence[str] = ()) -> None:
        self.study = study
        self._answers = answers
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
        return _scaled(found, self.study, cells[0])

    def of_runs(self, cell: int, seeds: Sequence[int]) -> list[ByExample] | None:
        """What each run of these seeds of a cell contributed, with the sign turned where less is better;
        None where that is not known of all.
        """
        trial = {seed.seed: seed.trial_id for seed in self.study.finished(cell)}
        found = [self._answers.get(trial[seed]) for seed in seeds]
        sign = self.study.direction(cell)
        known = [replace(run, values=sign * run.values) for run in found if run is not None]
        return known if len(known) == len(found) else None


def _scaled(part: OnSetting, study: Study, cell: int) -> OnSetting:
    """With what scores of this cell's metric are large or small beside, and how far two can be apart."""
    low, high = bounds(study.all_cells[cell].metric)
    return replace(part, size=study.size(cell), limit=high - low)


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
    if common := sorted({*known_x} & {*known_y}):
        differences = y[np.isin(known_y, common)] - x[np.isin(known_x, common)]
        found = [side.of_runs(cell, common) for side, cell in reversed(sides)]
        part = _on_setting(differences, found)
        return Between(tuple(common), differences, _scaled(part, before.study, cells[0]))
    known = [
        runs
        for (side, cell), seeds in zip(sides, (known_x, known_y), strict=True)
        if (runs := side.of_runs(cell, seeds)) is not None
    ]
    part = _of_groups(y, x, known[::-1])
    return Between((), np.empty(0), _scaled(part, before.study, cells[0]))


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
    """Reads the predictions of these cells, of the first of them if there are too many runs."""
    wanted = [study.all_cells[number] for number in dict.fromkeys(cells)]
    metrics: dict[str, Metric] = {
        name: METRICS.get(name) for name in {cell.metric for cell in wanted if cell.metric}
    }
    wanted = [cell for cell in wanted if cell.metric]
    runs: dict[str, tuple[Cell, Seed]] = {}
    taken = 0
    for cell in wanted:
        more = {seed.trial_id: (cell, seed) for seed in study.finished(cell.number)}
        if len(runs | more) > MOST_PREDICTIONS:
            break
        runs |= more
        taken += 1
    stored: dict[str, Predictions] = {}
    for experiment in study.experiments:
        for name, metric in metrics.items():
            of_both = [
                id_
                for id_, (cell, seed) in runs.items()
                if (seed.experiment, cell.metric) == (experiment.name, name)
            ]
            stored |= predictions(experiment, of_both, metric)
    answers = {
        id_: ByExample(_test_set(cell, stored[id_]), found.astype(np.float32))
        for id_, (cell, seed) in runs.items()
        if id_ in stored
        and (found := _contributed(metrics[cell.metric], seed, stored[id_], study.size(cell.number)))
        is not None
    }
    notes = []
    if taken < len(wanted):
        notes.append(
            f"Test examples count in the first {taken:,} of {len(wanted):,} cells: a report reads the "
            f"predictions of {MOST_PREDICTIONS:,} runs at most. Intervals of the others are of seeds alone."
        )
    if lost := len(runs) - len(stored):
        notes.append(
            f"Predictions of {many(lost, 'run')} are not stored or cannot be read: intervals with them are "
            "of seeds alone, and narrower than they should be."
        )
    if wrong := len(stored) - len(answers):
        notes.append(
            f"Predictions of {many(wrong, 'run')} do not give the score that is stored: intervals with them "
            "are of seeds alone, and narrower than they should be."
        )
    if silent := [some for some in stored.values() if _silent(some)]:
        notes.append(
            f"Predictions of {many(len(silent), 'run')} are partly no numbers: they count as wrong answers, "
            "in the scores and in all that is claimed from them."
        )
    return Evidence(study, answers, notes)


def _silent(stored: Predictions) -> bool:
    """Whether some example has no answer, or an output that is no number."""
    given = stored.given
    return bool((given < 0).any() if given.dtype.kind == "i" else (~np.isfinite(given)).any())


def _contributed(metric: Metric, seed: Seed, stored: Predictions, size: float) -> Array | None:
    """What each example contributed; None where that is not the stored score, which is large or small
    beside `size`.
    """
    if not len(stored.labels):
        return None
    with METRICS.blaming(metric.name):
        found = metric.contributions(stored.labels, stored.given)
    if seed.score is None or abs(found.mean() - seed.score) > AGREES * max(size, abs(seed.score)):
        return None
    return found


def _test_set(cell: Cell, stored: Predictions) -> str:
    content = hashlib.sha256(stored.examples.tobytes() + stored.labels.tobytes())
    return f"{cell.task} {content.hexdigest()}"
