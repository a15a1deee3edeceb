"""Checks of the examples on which a trial was scored: their number, repeats and labels.

The task's data are not read for this. The number of examples follows from the stored configuration and from
registered tasks. The labels of a split must be the same in all trials.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np

from tensorbench.checks.verify.findings import Examined
from tensorbench.machine.files import sha256_of
from tensorbench.methods import METHODS
from tensorbench.plan.suite_rows import TaskRow
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.metrics import METRICS
from tensorbench.records.predictions import Predictions
from tensorbench.records.record import Record
from tensorbench.tasks import TASKS, Objective
from tensorbench.tasks.data_tasks import METRIC_OF
from tensorbench.tasks.task import SPLITS

#: The keys of `Trial.data` that determine the examples of a split.
OF_DATA = ("task", "task_identity", "split", "data_hash")

#: The numbers of trained parameters.
TRAINED = (Measure.ADAPTER_PARAMETERS, Measure.HEAD_PARAMETERS)


def stored_objective(trial: Trial, outputs: int) -> Objective:
    """Returns the objective of a trial's task, which computes loss and score.

    `outputs` is the stored number of outputs per example.
    Raises UserError if the task or the metric is not registered here. Raises ValueError if the task has
    another number of outputs, or if the metric cannot score them.
    """
    row = trial.task
    if row.data is not None:
        kind, metric = row.data.target, row.metric or row.data.metric or METRIC_OF[row.data.target]
        expected = {"regression": 1, "generation": 3}.get(kind, outputs)
    else:
        task = TASKS.get(row.task)
        kind, metric, expected = task.target, row.metric or task.metric, task.outputs
    if outputs != expected:
        raise ValueError(f"{outputs} outputs, where the task has {expected}")
    scored = METRICS.get(metric)
    if kind not in scored.kinds or scored.classes not in (None, outputs):
        raise ValueError(f"metric '{metric}' does not score {kind} with {outputs} outputs")
    return Objective(scored, kind, outputs)


def answers_in_words(row: TaskRow) -> bool:
    """Whether a language model answers the task in words, so that it has no head.

    Raises UserError if the task is not registered here.
    """
    return row.verbalizer is not None or (row.data or TASKS.get(row.task)).target == "generation"


def check_rows(findings: Examined, record: Record, trial: Trial, stored: Predictions) -> None:
    """Compares the number of stored examples with that of the split, and reports repeated examples."""
    split, row = SPLITS.index(trial.evaluate), trial.task
    size, own = row.sizes[split], row.data or row.source or row.fractions
    if size is None and own is None and row.split == "fixed" and (sizes := TASKS.get(row.task).sizes):
        size = sizes[split]
    # Otherwise only the data tell the number.
    if size is not None:
        findings.compare("examples of the split", len(stored.example), size)
    measure = Measure.TEST_EXAMPLES if trial.evaluate == "test" else Measure.VALIDATION_EXAMPLES
    if (counted := record.measure(measure)) is not None:
        findings.compare(f"{measure} by the predictions", counted, float(len(stored.example)))
    if repeated := len(stored.example) - len(np.unique(stored.example)):
        findings.broken("repeated examples", repeated, 0)


@dataclass
class Splits:
    """Collects the stored examples, labels and outputs of trials, to compare trials with the same split."""

    #: For each split, the findings of its trials, each with the hash of the trial's examples and labels.
    _stored: defaultdict[str, list[tuple[Examined, str]]] = field(default_factory=lambda: defaultdict(list))
    #: For each split and hash of outputs, the trials with these outputs and their findings.
    _outputs: defaultdict[tuple[str, str], list[tuple[Examined, Trial]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, findings: Examined, trial: Trial, stored: Predictions) -> None:
        if not len(stored.example):
            return
        size = trial.task.sizes[SPLITS.index(trial.evaluate)]
        data = [trial.data.get(name) for name in OF_DATA]
        split = json.dumps([data, trial.task.split_seed(trial.seed), trial.evaluate, size])
        order = np.argsort(stored.example, kind="stable")
        content = np.column_stack([stored.example, stored.label])[order]
        self._stored[split].append((findings, sha256_of(content.tobytes())))
        outputs = stored.steps if stored.logit is None else stored.logit
        values = np.column_stack([np.asarray(outputs)])[order]
        # Trials that learned nothing may agree. They give all examples of a class the same outputs.
        alike = values[(content[:, 1:] == content[0, 1:]).all(1)]
        if not (alike != alike[0]).any():
            return
        # Outputs do not depend on the seed if nothing is trained, or only a head is fitted.
        method = str(trial.method.get("method"))
        fitted = method in METHODS and METHODS.get(method).fits_head
        if not fitted and findings.record is not None and any(map(findings.record.measure, TRAINED)):
            self._outputs[split, sha256_of(values.tobytes())].append((findings, trial))

    def compare(self) -> None:
        """Reports trials of one split with different examples or labels, and seeds with equal outputs.

        In each split, the most common examples and labels count as right. If two or more versions are the
        most common, all trials with this split are reported.
        """
        for stored in self._stored.values():
            counts = Counter(digest for _, digest in stored).most_common()
            tied = len(counts) > 1 and counts[0][1] == counts[1][1]
            for findings, digest in stored:
                if tied or digest != counts[0][0]:
                    differing = sum(other != digest for _, other in stored)
                    findings.broken(
                        "examples and labels",
                        f"sha256 {digest:.12}",
                        f"others in {differing} trial(s) of the split",
                    )
        for equal in self._outputs.values():
            for findings, trial in equal:
                if copy := next((other.id for _, other in equal if other.seed != trial.seed), None):
                    findings.broken("outputs", f"those of trial {copy}", f"those of seed {trial.seed}")
