"""What a backbone's outputs are trained for and how they are scored, by the kind of a task's target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bench.metrics import METRICS, Kind, Metric
from bench.tasks.base import Task
from methods.errors import UserError


@dataclass(frozen=True)
class Objective:
    """Loss and score of a backbone's outputs (N, outputs) against a split's labels.

    Of a generation labels are 1 and outputs (N, 3): whether the written answer is right, the log-likelihood
    of the tokens to be predicted, and how many those are.

    Labels are int64 (N,) of a single label, float 0 or 1 (N, classes) of several, float (N,) in their units
    of a regression. There the one output is a standardised target: `centre` and `spread` are mean and
    standard deviation of the training targets.
    """

    metric: Metric
    kind: Kind
    outputs: int
    centre: float = 0.0
    spread: float = 1.0

    @property
    def scale(self) -> tuple[float, float] | None:
        """Mean and standard deviation of a regression's training targets."""
        return (self.centre, self.spread) if self.kind == "regression" else None

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy, of a generation over its tokens; with several labels binary.

        Of a regression it is the squared error, standardised.
        """
        if self.kind == "single label":
            return F.cross_entropy(outputs, labels)
        if self.kind == "generation":
            # Of all tokens alike, whichever example they are of.
            return -outputs[:, 1].sum() / outputs[:, 2].sum()
        if self.kind == "multi-label":
            return F.binary_cross_entropy_with_logits(outputs, labels)
        return F.mse_loss(outputs.squeeze(1), (labels - self.centre) / self.spread)

    def guessing_loss(self, labels: Tensor) -> float | None:
        """The loss of the best answer that is the same for every example; None of a generation.

        It is the entropy of the labels, of several labels the mean of theirs, and the variance of targets.
        """
        if self.kind == "generation":
            return None
        if self.kind == "regression":
            return ((labels.double() - self.centre) / self.spread).var(correction=0).item()
        if self.kind == "single label":
            return torch.special.entr(labels.bincount().double() / len(labels)).sum().item()
        share = labels.double().mean(0)
        return (torch.special.entr(share) + torch.special.entr(1 - share)).mean().item()

    def terms(self, inputs: Mapping[str, Tensor], labels: Tensor) -> float:
        """How many terms the loss of these examples is a mean of: their weight in that of a whole batch."""
        return inputs["scored"][:, 1:].sum().item() if self.kind == "generation" else len(labels)

    def answers(self, outputs: Tensor) -> NDArray[Any]:
        """The likeliest class (N,); which classes are likelier than not (N, classes); numbers (N,); whether
        what was written is right (N,).
        """
        if self.kind == "single label":
            return np.asarray(outputs.argmax(1))
        if self.kind == "multi-label":
            return np.asarray((outputs > 0).long())
        if self.kind == "generation":
            return np.asarray((outputs[:, 0] > 0).long())
        return np.asarray(outputs.squeeze(1).double() * self.spread + self.centre)

    def score(self, outputs: Tensor, labels: Tensor) -> float:
        """The metric of outputs against labels, both on the CPU. Raises UserError where it has none."""
        given = self.answers(outputs) if self.metric.reads == "answers" else np.asarray(outputs)
        with METRICS.blaming(self.metric.name):
            return float(self.metric.score(np.asarray(self.targets(labels)), given))

    def targets(self, labels: Tensor) -> Tensor:
        """The labels as metrics and stored predictions have them."""
        return labels.long() if self.kind == "multi-label" else labels

    def standardised(self, task: str, labels: Tensor) -> Objective:
        """For the training targets of a regression, (N,); others stay as they are.

        Raises UserError where all targets are the same.
        """
        if self.kind != "regression":
            return self
        values = labels.double()
        spread = float(values.std(correction=0))
        if not spread > 0:
            raise UserError(
                f"task '{task}': all {len(values):,} training targets are {values[0].item():g}: "
                "there is nothing to learn"
            )
        return replace(self, centre=float(values.mean()), spread=spread)


def objective(task: Task) -> Objective:
    """What a task asks for. Raises UserError for a metric that is not known or does not fit the task."""
    metric = METRICS.get(task.metric)
    where = f"task '{task.name}': metric '{task.metric}'"
    if task.target not in metric.kinds:
        fitting = ", ".join(name for name, known in METRICS.available() if task.target in known.kinds)
        raise UserError(
            f"{where} scores {' and '.join(metric.kinds)}, and the task's target is {task.target}; "
            f"for it there are {fitting}"
        )
    if metric.classes is not None and metric.classes != len(task.classes):
        raise UserError(f"{where} needs {metric.classes} classes, and the task has {len(task.classes)}")
    return Objective(metric, task.target, task.outputs)


def check_labels(task: Task, split: str, labels: Tensor) -> None:
    """Raises UserError where the metric cannot score a split with these labels, as `as_tensor` has them."""
    if not METRICS.get(task.metric).every_class:
        return
    flags = labels if task.target == "multi-label" else F.one_hot(labels, len(task.classes))
    counts = (flags > 0).sum(0)
    lacking = [name for name, n in zip(task.classes, counts.tolist(), strict=True) if not 0 < n < len(labels)]
    if lacking:
        raise UserError(
            f"task '{task.name}': metric '{task.metric}' needs examples with and without each class; of "
            f"{', '.join(lacking)} the {split} split as it is used ({len(labels):,}) has only the one or the "
            f"other: raise {split}_size, or take another metric"
        )


def as_tensor(task: Task, labels: list[Any]) -> Tensor:
    """A task's checked labels as one tensor."""
    if task.target == "single label":
        return torch.tensor(labels)
    if task.target == "regression":
        return torch.tensor(labels, dtype=torch.float32)
    if task.target == "generation":
        return torch.ones(len(labels), dtype=torch.long)
    found = torch.zeros(len(labels), task.outputs)
    for row, of_row in enumerate(labels):
        found[row, list(of_row)] = 1
    return found


def as_labels(task: Task, labels: Tensor) -> list[Any]:
    """The opposite of `as_tensor`."""
    if task.target == "multi-label":
        return [tuple(row.nonzero()[:, 0].tolist()) for row in labels]
    return list(labels.tolist())
