"""The scores of runs, with what each test example contributed where predictions are stored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reports.artifacts import Predictions, predictions
from reports.inference.crossed import METRICS, OnSetting, contributions, of_seeds, of_seeds_and_examples
from reports.inference.intervals import Array
from reports.study import Cell, Seed, Study
from reports.words import many

#: Runs whose predictions one report reads.
MOST_PREDICTIONS = 2000
#: How far the score of stored predictions may be from the stored score: older stores have it in float32.
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

    def on_setting(
        self, cells: Sequence[int], combined: Callable[..., Array] = np.subtract
    ) -> OnSetting | None:
        """What cells of one setting differ by, over the seeds that all of them have; None where there is
        none.

        `combined` makes it from one array for each cell, of (seeds,) or (seeds, examples).
        """
        seeds, scores = self.study.scores(cells)
        if not seeds:
            return None
        values = combined(*scores)
        found = [self._of_cell(cell, seeds) for cell in cells]
        runs = [run for some in found for run in some or ()]
        if any(some is None for some in found):
            return of_seeds(values)
        of_seed = [{some[k].test_set for some in found if some} for k in range(len(seeds))]
        if any(len(sets) > 1 for sets in of_seed):
            return of_seeds(values)
        if len({run.test_set for run in runs}) > 1:
            # Each seed has test examples of its own: its score varies with them already.
            return replace(of_seeds(values), count=len(runs[0].values))
        tables = (np.stack([run.values for run in some or ()]).astype(float) for some in found)
        return of_seeds_and_examples(values, combined(*tables), runs[0].test_set)

    def _of_cell(self, cell: int, seeds: Sequence[int]) -> list[ByExample] | None:
        trial = {seed.seed: seed.trial_id for seed in self.study.finished(cell)}
        found = [self._answers.get(trial[seed]) for seed in seeds]
        known = [run for run in found if run is not None]
        return known if len(known) == len(found) else None


def gather(study: Study, cells: Iterable[int]) -> Evidence:
    """Reads the predictions of these cells, of the first of them if there are too many runs."""
    wanted = [study.all_cells[number] for number in dict.fromkeys(cells)]
    wanted = [cell for cell in wanted if cell.metric in METRICS]
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
        stored |= predictions(
            experiment, [id_ for id_, (_, s) in runs.items() if s.experiment == experiment.name]
        )
    answers = {
        id_: ByExample(_test_set(cell, stored[id_]), found.astype(np.float32))
        for id_, (cell, seed) in runs.items()
        if id_ in stored and (found := _contributed(cell, seed, stored[id_])) is not None
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
    if silent := [some for some in stored.values() if (some.answers < 0).any()]:
        notes.append(
            f"Predictions of {many(len(silent), 'run')} are partly no numbers: they count as wrong answers, "
            "in the scores and in all that is claimed from them."
        )
    return Evidence(study, answers, notes)


def _contributed(cell: Cell, seed: Seed, stored: Predictions) -> Array | None:
    """What each example contributed; None where that is not the stored score."""
    if not len(stored.labels):
        return None
    found = contributions(cell.metric, stored.labels, stored.answers)
    return found if seed.score is not None and abs(found.mean() - seed.score) <= AGREES else None


def _test_set(cell: Cell, stored: Predictions) -> str:
    content = hashlib.sha256(stored.examples.tobytes() + stored.labels.tobytes())
    return f"{cell.task} {content.hexdigest()}"
