"""The evidence behind comparisons: stored predictions, and each test example's contribution to a score."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensorbench.records.metrics import METRICS, Metric
from tensorbench.records.predictions import Predictions as StoredPredictions
from tensorbench.records.predictions import compact, read_predictions
from tensorbench.records.words import Artifact
from tensorbench.reports.inference.intervals import RESOLUTION
from tensorbench.reports.results import Cell, Results, Seed, grouped
from tensorbench.reports.units import many

#: The largest number of runs whose predictions a report reads, and how many it reads at a time.
MOST_PREDICTIONS, READERS = 4000, 8
#: The largest accepted difference between the stored score and the score computed from stored predictions, as
#: a share of the stored score or of the typical size of scores on the task, whichever is larger. It is not
#: zero, since older stores have float32.
AGREES = 1e-4


@dataclass(frozen=True)
class Predictions:
    """The stored predictions of one run, sorted by example.

    The shape of `labels` and `responses` is (examples,) or (examples, classes), depending on the metric (see
    `tensorbench.records.metrics.Metric`). In an array of integers, -1 stands for a missing value.
    """

    examples: NDArray[np.integer[Any]]
    labels: NDArray[Any]
    #: The model's answers or its outputs, whichever the metric reads.
    responses: NDArray[Any]
    #: The negative log-probability of each label in nats (examples,). None unless each example has exactly
    #: one class.
    losses: NDArray[np.float32] | None = None
    #: Whether the model gives all examples the same answer although their labels differ.
    constant: bool = False


def predictions(results: Results, seeds: Sequence[Seed], metric: Metric) -> dict[str, Predictions]:
    """Reads stored predictions. Returns them by trial id, without trials whose predictions cannot be read."""
    classes = metric.kinds != ("regression",)

    def read(seed: Seed) -> Predictions | None:
        content = results.experiment(seed.experiment).source.read(seed.record, Artifact.PREDICTIONS)
        if content is None:
            return None
        try:
            stored = read_predictions(content)
        except ValueError:
            return None
        label, responses, short = stored.label, stored.prediction, compact(stored)
        if classes:
            label, responses = (
                np.nan_to_num(values, nan=-1, posinf=-1, neginf=-1).astype(np.int64)
                for values in (label, responses)
            )
        if metric.reads == "outputs":
            if stored.logit is None:
                return None
            responses = stored.logit
        order = np.argsort(stored.example, kind="stable")
        losses = None if short is None else -short.log_probability[order].astype(np.float32)
        constant = is_constant(stored)
        return Predictions(stored.example[order], label[order], responses[order], losses, constant)

    with ThreadPoolExecutor(READERS) as pool:
        read_seeds = zip(seeds, pool.map(read, seeds), strict=True)
        return {seed.trial_id: stored for seed, stored in read_seeds if stored}


def is_constant(stored: StoredPredictions) -> bool:
    """Whether a model gives all examples the same answer although their labels differ.

    An answer is a class, several classes, a written text, or a number up to `RESOLUTION` of the labels'
    range. The labels of written answers are not their texts. The right texts differ if one text is not right
    everywhere.
    """
    labels = stored.label.astype(float)
    if len(labels) < 2 or not np.isfinite(labels).all():
        return False
    if stored.text is not None:
        return len(set(stored.text)) == 1 and bool((stored.prediction != stored.label).any())
    spread = np.ptp(labels, axis=0)
    answers = np.nan_to_num(stored.prediction.astype(float), nan=-1, posinf=-1, neginf=-1)
    return bool(spread.any() and (np.ptp(answers, axis=0) <= RESOLUTION * spread.max()).all())


@dataclass(frozen=True)
class ByExample:
    """The contributions of the examples to the score of one run."""

    #: A hash of the examples. It is equal for runs that were evaluated on the same examples.
    test_set: str
    #: The contributions (examples,). Larger is better.
    values: NDArray[np.float32]
    #: The examples' losses (examples,), as in `Predictions`.
    losses: NDArray[np.float32] | None = None
    #: As in `Predictions`.
    constant: bool = False


def gather(results: Results, cells: Iterable[Cell]) -> tuple[dict[str, ByExample], list[str]]:
    """Reads the predictions of these cells' finished runs, of at most `MOST_PREDICTIONS` runs.

    Returns the contributions of test examples by trial id, for runs whose predictions reproduce the stored
    score, and notes on other runs and on cells that were left out. Raises UserError if a plug-in's metric
    fails.
    """
    scored = [cell for cell in cells if cell.metric]
    runs: dict[str, tuple[Cell, Seed]] = {}
    taken = 0
    for cell in scored:
        more = {seed.trial_id: (cell, seed) for seed in cell.finished_trials}
        if len(runs | more) > MOST_PREDICTIONS:
            break
        runs |= more
        taken += 1
    stored: dict[str, Predictions] = {}
    for metric, alike in grouped(runs.values(), lambda run: run[0].metric).items():
        stored |= predictions(results, [seed for _, seed in alike], METRICS.get(metric))
    by_trial = {
        id_: each
        for id_, (cell, seed) in runs.items()
        if id_ in stored and (each := _by_example(results, cell, seed, stored[id_])) is not None
    }
    # If no run of another program has predictions, the results have a note on that already.
    noted = stored or not results.foreign
    limits = _limits(len(scored), taken, runs, stored, by_trial) if noted else ()
    return by_trial, list(limits)


def _by_example(results: Results, cell: Cell, seed: Seed, stored: Predictions) -> ByExample | None:
    """The contributions of examples to the score of a run.

    None if the run has no example or no stored score, or if the mean contribution is not the stored score.
    """
    if not len(stored.labels):
        return None
    metric = METRICS.get(cell.metric)
    with METRICS.blaming(metric.name):
        values = metric.contributions(stored.labels, stored.responses)
    size, score = results.size(cell), seed.score
    if score is None or abs(values.mean() - score) > AGREES * max(size, abs(score)):
        return None
    test_set = hashlib.sha256(stored.examples.tobytes() + stored.labels.tobytes()).hexdigest()
    values = (metric.sign * values).astype(np.float32)
    return ByExample(f"{cell.task} {test_set}", values, stored.losses, stored.constant)


def _limits(
    cells: int,
    taken: int,
    runs: Mapping[str, object],
    stored: Mapping[str, Predictions],
    by_trial: Mapping[str, ByExample],
) -> Iterator[str]:
    """Yields notes on missing, unreadable or inconsistent predictions. `taken` of `cells` cells are read."""
    if taken < cells:
        yield (
            f"Test examples count in the first {taken:,} of {cells:,} cells: a report reads the "
            f"predictions of {MOST_PREDICTIONS:,} runs at most. Intervals of the others are of seeds alone."
        )
    narrow = "intervals with them are of seeds alone, and narrower than they should be."
    if unreadable := len(runs) - len(stored):
        yield f"Predictions of {many(unreadable, 'run')} are not stored or cannot be read: {narrow}"
    if wrong := len(stored) - len(by_trial):
        yield f"Predictions of {many(wrong, 'run')} do not give the score that is stored: {narrow}"
    if silent := sum(map(_is_silent, stored.values())):
        yield (
            f"Predictions of {many(silent, 'run')} are partly NaN or missing: they count as wrong "
            "answers, in the scores and in all that is claimed from them."
        )


def _is_silent(stored: Predictions) -> bool:
    """Whether some example has no answer, or an output that is NaN or infinite."""
    responses = stored.responses
    return bool((responses < 0).any() if responses.dtype.kind == "i" else (~np.isfinite(responses)).any())
