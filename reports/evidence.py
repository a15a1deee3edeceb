"""The evidence behind comparisons: each test example's contribution to the score of each run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tensorbench.reports.predictions import ByExample, Run, contributions
from tensorbench.reports.results import Results
from tensorbench.reports.words import many

#: The largest number of runs whose predictions a report reads.
MOST_PREDICTIONS = 4000


@dataclass(frozen=True)
class Evidence:
    """The contributions of test examples to the scores of runs."""

    results: Results
    #: The contributions by trial id.
    by_trial: Mapping[str, ByExample] = field(repr=False)
    #: Limits of the evidence, shown in the report's notes.
    notes: Sequence[str]

    def of_runs(self, cell: int, seeds: Sequence[int]) -> list[ByExample] | None:
        """For each of these seeds of a cell, the contributions of test examples to its score.

        Larger is better. None if the contributions to some score are unknown.
        """
        trial = {seed.seed: seed.trial_id for seed in self.results.finished(cell)}
        sign = self.results.direction(cell)
        runs = [self.by_trial.get(trial[seed]) for seed in seeds]
        stored = [replace(run, values=sign * run.values) for run in runs if run is not None]
        return stored if len(stored) == len(runs) else None


def gather(results: Results, cells: Iterable[int]) -> Evidence:
    """Reads the predictions of these cells' finished runs.

    It reads at most `MOST_PREDICTIONS` runs. A note says if some were left out.
    """
    numbers = list(dict.fromkeys(cells))
    scored = [cell for number in numbers if (cell := results.all_cells[number]).metric]
    runs: dict[str, Run] = {}
    taken = 0
    for cell in scored:
        size = results.size(cell.number)
        more = {
            seed.trial_id: Run(seed.experiment, cell.task, cell.metric, seed.score, size)
            for seed in results.finished(cell.number)
        }
        if len(runs | more) > MOST_PREDICTIONS:
            break
        runs |= more
        taken += 1
    stored = contributions(results.experiments, runs)
    notes = []
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
    return Evidence(results, stored.by_trial, notes)
