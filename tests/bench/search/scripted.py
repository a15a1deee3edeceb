"""Runs choosers on scripted results, without training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import Suite
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.record import Record
from tensorbench.records.words import Status
from tensorbench.run.search.chooser import Batch, Choices, Chooser
from tensorbench.run.search.ranks import choosers_of

#: The validation loss and score of a trial. None: it failed.
Scripted = Callable[[Trial], tuple[float, float] | None]


def record(trial: Trial, result: tuple[float, float] | None) -> Record:
    if result is None:
        return Record("failed", trial.id, Status.FAILED)
    loss, score = result
    metrics = {Measure.SCORE: score, Measure.SCORE_LOSS: loss, Measure.SELECTED_LOSS: loss}
    return Record("finished", trial.id, Status.FINISHED, metrics=metrics)


def steps(
    chooser: Chooser, records_of: Callable[[Trial], Sequence[Record]]
) -> tuple[Choices, list[list[Trial]]]:
    """Runs a chooser. Returns its choices, and the trials of each of its batches."""
    batches: list[list[Trial]] = []

    def results(batch: Batch) -> list[Record]:
        batches.append(batch.trials)
        return [each for trial in batch.trials for each in records_of(trial)]

    return chooser.run(results), batches


def only_chooser(suite: Suite) -> Chooser:
    (chooser,) = choosers_of(make_plan(suite)).values()
    return chooser


def choose(suite: Suite, result: Scripted) -> tuple[Choices, list[Trial]]:
    """Runs the only chooser of a suite. Returns its choices and the trials that it ran."""
    choices, batches = steps(only_chooser(suite), lambda trial: [record(trial, result(trial))])
    return choices, [trial for batch in batches for trial in batch]
