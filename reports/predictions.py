"""Reads the stored predictions of runs, and computes each example's contribution to a run's score."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensorbench.metrics import METRICS, Metric
from tensorbench.records.predictions import compact, read_predictions
from tensorbench.records.words import Artifact
from tensorbench.reports.inference.intervals import Array
from tensorbench.reports.results import Experiment

#: The number of artifacts read concurrently.
READERS = 8
#: The largest accepted difference between the stored score and the score computed from stored predictions, as
#: a share of the stored score or of the typical size of scores on the task, whichever is larger. It is not
#: zero, since older stores have float32.
AGREES = 1e-4


@dataclass(frozen=True)
class Predictions:
    """The stored predictions of one run, sorted by example.

    `labels` and `responses` are (examples,) or (examples, classes), as `tensorbench.metrics.Metric` says. In
    an array of integers, -1 stands for a missing value.
    """

    examples: NDArray[np.integer[Any]]
    labels: NDArray[Any]
    #: The model's answers or its outputs, whichever the metric reads.
    responses: NDArray[Any]
    #: The negative log-probability of each label in nats (examples,). None unless an example has one class.
    losses: NDArray[np.float32] | None = None


def predictions(experiment: Experiment, trial_ids: Iterable[str], metric: Metric) -> dict[str, Predictions]:
    """Reads stored predictions. Returns them by trial id, without trials whose predictions cannot be read."""
    classes = metric.kinds != ("regression",)

    def read(trial_id: str) -> Predictions | None:
        content = experiment.source.read(experiment.records[trial_id], Artifact.PREDICTIONS)
        if content is None:
            return None
        try:
            stored = read_predictions(content)
        except ValueError:
            return None
        label, responses, short = stored.label, stored.prediction, compact(stored)
        if classes:
            label, responses = map(_integers, (label, responses))
        if metric.reads == "outputs":
            if stored.logit is None:
                return None
            responses = stored.logit
        order = np.argsort(stored.example, kind="stable")
        losses = None if short is None else -short.log_probability[order].astype(np.float32)
        return Predictions(stored.example[order], label[order], responses[order], losses)

    ids = list(trial_ids)
    with ThreadPoolExecutor(READERS) as pool:
        return {id_: stored for id_, stored in zip(ids, pool.map(read, ids), strict=True) if stored}


def _integers(values: NDArray[Any]) -> NDArray[np.int64]:
    """Converts values to integers, and NaN and infinity to -1."""
    return np.nan_to_num(values, nan=-1, posinf=-1, neginf=-1).astype(np.int64)


@dataclass(frozen=True)
class Run:
    """A finished run with its score."""

    experiment: str
    task: str
    metric: str
    score: float | None
    #: The typical size of scores on the task, as `Results.size` returns it.
    size: float


@dataclass(frozen=True)
class ByExample:
    """The contributions of the examples to the score of one run."""

    #: A hash of the examples. It is equal for runs that were evaluated on the same examples.
    test_set: str
    #: The contributions (examples,).
    values: NDArray[np.float32]
    #: The examples' losses (examples,), as in `Predictions`.
    losses: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Contributions:
    """The contributions of examples to the scores of several runs."""

    #: The contributions by trial id, for runs whose predictions give the stored score.
    by_trial: Mapping[str, ByExample]
    #: The number of runs whose predictions are missing or unreadable.
    unreadable: int
    #: The number of runs whose predictions do not give the stored score.
    wrong: int
    #: The number of runs with an example whose prediction is missing, NaN or infinite.
    silent: int


def contributions(experiments: Iterable[Experiment], runs: Mapping[str, Run]) -> Contributions:
    """Computes the examples' contributions to the scores of these runs from their stored predictions.

    `runs` has the runs by trial id.
    """
    stored: dict[str, Predictions] = {}
    for experiment in experiments:
        own = {id_: run for id_, run in runs.items() if run.experiment == experiment.name}
        for name in dict.fromkeys(run.metric for run in own.values()):
            of_metric = [id_ for id_, run in own.items() if run.metric == name]
            stored |= predictions(experiment, of_metric, METRICS.get(name))
    by_trial = {
        id_: ByExample(_test_set(run.task, stored[id_]), values.astype(np.float32), stored[id_].losses)
        for id_, run in runs.items()
        if id_ in stored and (values := _contributed(METRICS.get(run.metric), run, stored[id_])) is not None
    }
    silent = sum(map(_silent, stored.values()))
    return Contributions(by_trial, len(runs) - len(stored), len(stored) - len(by_trial), silent)


def _silent(stored: Predictions) -> bool:
    """Whether some example has no answer, or an output that is NaN or infinite."""
    responses = stored.responses
    return bool((responses < 0).any() if responses.dtype.kind == "i" else (~np.isfinite(responses)).any())


def _contributed(metric: Metric, run: Run, stored: Predictions) -> Array | None:
    """The contributions of examples to the run's score.

    None if the run has no example or no stored score, or if the mean contribution is not the stored score
    (see `AGREES`). Raises UserError if a plug-in's metric fails.
    """
    if not len(stored.labels):
        return None
    with METRICS.blaming(metric.name):
        values = metric.contributions(stored.labels, stored.responses)
    if run.score is None or abs(values.mean() - run.score) > AGREES * max(run.size, abs(run.score)):
        return None
    return values


def _test_set(task: str, stored: Predictions) -> str:
    content = hashlib.sha256(stored.examples.tobytes() + stored.labels.tobytes())
    return f"{task} {content.hexdigest()}"
