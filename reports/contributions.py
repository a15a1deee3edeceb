"""What each example contributed to the score of a run, from its stored predictions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.metrics import METRICS, Metric
from reports.artifacts import Predictions, predictions
from reports.inference.intervals import Array
from reports.study import Study

#: How far the score of stored predictions may be from the stored score, as a share of it, or of what scores
#: of its task come to where that is more: older stores have it in float32.
AGREES = 1e-4


@dataclass(frozen=True)
class Run:
    """A finished run with its score, and what that is large or small beside."""

    experiment: str
    task: str
    metric: str
    score: float | None
    size: float


@dataclass(frozen=True)
class ByExample:
    """What each example (examples,) contributed to the score of one run."""

    #: The same for runs that were evaluated on the same examples.
    test_set: str
    values: NDArray[np.float32]


@dataclass(frozen=True)
class Contributions:
    """What stored predictions tell of runs, by trial id."""

    by_trial: Mapping[str, ByExample]
    #: Runs whose predictions are missing or cannot be read, do not give the stored score, and are partly no
    #: numbers.
    unreadable: int
    wrong: int
    silent: int


def contributions(study: Study, runs: Mapping[str, Run]) -> Contributions:
    """Reads the predictions of these runs, which stand by their trial ids."""
    stored: dict[str, Predictions] = {}
    for experiment in study.experiments:
        own = {id_: run for id_, run in runs.items() if run.experiment == experiment.name}
        for name in dict.fromkeys(run.metric for run in own.values()):
            of_both = [id_ for id_, run in own.items() if run.metric == name]
            stored |= predictions(experiment, of_both, METRICS.get(name))
    by_trial = {
        id_: ByExample(_test_set(run.task, stored[id_]), values.astype(np.float32))
        for id_, run in runs.items()
        if id_ in stored and (values := _contributed(METRICS.get(run.metric), run, stored[id_])) is not None
    }
    silent = sum(map(_silent, stored.values()))
    return Contributions(by_trial, len(runs) - len(stored), len(stored) - len(by_trial), silent)


def _silent(stored: Predictions) -> bool:
    """Whether some example has no answer, or an output that is no number."""
    given = stored.given
    return bool((given < 0).any() if given.dtype.kind == "i" else (~np.isfinite(given)).any())


def _contributed(metric: Metric, run: Run, stored: Predictions) -> Array | None:
    """What each example contributed; None where that is not the stored score."""
    if not len(stored.labels):
        return None
    with METRICS.blaming(metric.name):
        values = metric.contributions(stored.labels, stored.given)
    if run.score is None or abs(values.mean() - run.score) > AGREES * max(run.size, abs(run.score)):
        return None
    return values


def _test_set(task: str, stored: Predictions) -> str:
    content = hashlib.sha256(stored.examples.tobytes() + stored.labels.tobytes())
    return f"{task} {content.hexdigest()}"
