"""Checks of the examples on which a trial was scored: their number, repeats and labels.

The task's data are not read for this. The number of examples follows from the stored configuration and from
registered tasks. The labels of a split must be the same in all trials.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import pandas as pd

from bench.metrics import METRICS
from bench.plan.trial import Trial
from bench.records.measures import Measure
from bench.records.predictions import numbered
from bench.records.record import Record
from bench.tasks import TASKS, Objective
from bench.tasks.own_tasks import METRIC_OF
from bench.tasks.task import SPLITS
from bench.verify.findings import Examined

#: The keys of `Trial.data` that determine the examples of a split.
OF_DATA = ("task", "task_identity", "split", "data_hash")


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


def split_size(trial: Trial) -> int | None:
    """Returns the number of examples of the split on which the trial was scored.

    None if only the data tell this number.
    """
    number, row = SPLITS.index(trial.evaluate), trial.task
    if (size := row.sizes[number]) is not None:
        return size
    if row.data is not None or row.source is not None or row.fractions is not None or row.split != "fixed":
        return None
    sizes = TASKS.get(row.task).sizes
    return None if sizes is None else sizes[number]


def check_rows(findings: Examined, record: Record, trial: Trial, table: pd.DataFrame) -> None:
    """Compares the number of stored examples with that of the split, and reports repeated examples."""
    if (size := split_size(trial)) is not None:
        findings.compare("examples of the split", len(table), size)
    # Earlier versions did not store the number of scored examples.
    measure = Measure.TEST_EXAMPLES if trial.evaluate == "test" else Measure.VALIDATION_EXAMPLES
    if (counted := record.measure(measure)) is not None:
        findings.compare(f"{measure} by the predictions", counted, float(len(table)))
    if "example" not in table:
        findings.cannot("ids of examples", "an earlier version stored none")
    elif repeated := int(table["example"].duplicated().sum()):
        findings.broken("repeated examples", repeated, 0)


@dataclass
class Splits:
    """Collects the stored examples and labels of trials, to compare trials with the same split."""

    #: For each split, the findings of its trials, each with the hash of the trial's examples and labels.
    _stored: defaultdict[str, list[tuple[Examined, str]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, findings: Examined, trial: Trial, table: pd.DataFrame) -> None:
        labels = numbered(list(table.columns), "label")
        if "example" not in table or not labels:
            return
        size = trial.task.sizes[SPLITS.index(trial.evaluate)]
        data = [trial.data.get(name) for name in OF_DATA]
        split = json.dumps([data, trial.task.split_seed(trial.seed), trial.evaluate, size])
        content = table[["example", *labels]].sort_values("example").to_numpy()
        self._stored[split].append((findings, hashlib.sha256(content.tobytes()).hexdigest()))

    def compare(self) -> None:
        """Reports trials whose examples or labels differ although their split is the same.

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
