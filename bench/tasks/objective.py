"""Losses and scores of a backbone's outputs, for each kind of target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bench.metrics import METRICS, Kind, Metric
from bench.tasks.task import Task
from methods.errors import UserError, shown


@dataclass(frozen=True)
class Objective:
    """Loss and score of a backbone's outputs (N, outputs) for a split's labels.

    Single label: labels int64 (N,). Multi-label: labels float 0 or 1 (N, classes). Regression: labels float
    (N,) in their unit; the output predicts targets standardised by the training targets' mean `centre` and
    standard deviation `spread`. Generation: labels are 1, and outputs (N, 3) are whether the written answer
    is correct, the log-likelihood of the predicted tokens, and their number.
    """

    metric: Metric
    kind: Kind
    outputs: int
    centre: float = 0.0
    spread: float = 1.0

    @property
    def scale(self) -> tuple[float, float] | None:
        """Mean and standard deviation of a regression's training targets. None for other kinds."""
        return (self.centre, self.spread) if self.kind == "regression" else None

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy over examples (binary for multi-label) or tokens (generation).

        For regression, the mean squared error of standardised targets.
        """
        if self.kind == "single label":
            return F.cross_entropy(outputs, labels)
        if self.kind == "generation":
            # Every token has the same weight, regardless of its example.
            return -outputs[:, 1].sum() / outputs[:, 2].sum()
        if self.kind == "multi-label":
            return F.binary_cross_entropy_with_logits(outputs, labels)
        return F.mse_loss(outputs.squeeze(1), (labels - self.centre) / self.spread)

    def guessing_loss(self, labels: Tensor) -> float | None:
        """The loss of the best constant answer. None for generation.

        For classes, the entropy of the labels (for multi-label the mean over labels); for regression, the
        variance of the standardised targets.
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
        """The number of examples (for generation, of tokens to predict) over which the loss is a mean."""
        return inputs["scored"][:, 1:].sum().item() if self.kind == "generation" else len(labels)

    def answers(self, outputs: Tensor) -> NDArray[Any]:
        """The answers: classes (N,), flags (N, classes), numbers (N,), or 1 for each correct text (N,)."""
        if self.kind == "single label":
            return np.asarray(outputs.argmax(1))
        if self.kind == "multi-label":
            return np.asarray((outputs > 0).long())
        if self.kind == "generation":
            return np.asarray((outputs[:, 0] > 0).long())
        return np.asarray(outputs.squeeze(1).double() * self.spread + self.centre)

    def score(self, outputs: Tensor, labels: Tensor) -> float:
        """The metric of outputs and labels, both on the CPU. Raises UserError if the metric is undefined."""
        predictions = self.answers(outputs) if self.metric.reads == "answers" else np.asarray(outputs)
        return self.score_of(predictions, np.asarray(self.targets(labels)))

    def score_of(self, predictions: NDArray[Any], targets: NDArray[Any]) -> float:
        """The metric of stored labels and predictions (answers or outputs). Raises UserError if undefined."""
        with METRICS.blaming(self.metric.name):
            return float(self.metric.score(targets, predictions))

    def targets(self, labels: Tensor) -> Tensor:
        """The labels in the form used by metrics and stored predictions."""
        return labels.long() if self.kind == "multi-label" else labels

    def standardised(self, task: str, labels: Tensor) -> Objective:
        """The objective with mean and spread of a regression's training targets (N,).

        Unchanged for other kinds. Raises UserError if all targets are equal.
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
    """The objective of a task. Raises UserError for an unknown or unsuitable metric."""
    metric = METRICS.get(task.metric)
    where = f"task '{task.name}': metric '{task.metric}'"
    if task.target not in metric.kinds:
        fitting = ", ".join(name for name, scorer in METRICS.available() if task.target in scorer.kinds)
        raise UserError(
            f"{where} scores {' and '.join(metric.kinds)}, and the task's target is {task.target}; "
            f"for it there are {fitting}"
        )
    if metric.classes is not None and metric.classes != len(task.classes):
        raise UserError(f"{where} needs {metric.classes} classes, and the task has {len(task.classes)}")
    return Objective(metric, task.target, task.outputs)


def check_labels(task: Task, split: str, labels: Tensor) -> None:
    """Raises UserError if the metric is undefined for these labels, in the form of `as_tensor`."""
    if not METRICS.get(task.metric).every_class:
        return
    flags = labels if task.target == "multi-label" else F.one_hot(labels, len(task.classes))
    counts = (flags > 0).sum(0)
    lacking = [name for name, n in zip(task.classes, counts.tolist(), strict=True) if not 0 < n < len(labels)]
    if lacking:
        raise UserError(
            f"task '{task.name}': metric '{task.metric}' needs examples with and without each class; of "
            f"{', '.join(lacking)} the {split} split as it is used ({len(labels):,}) has only the one or the "
            f"other: raise {split}_size, or use another metric"
        )


def as_tensor(task: Task, labels: list[Any]) -> Tensor:
    """Converts a task's checked labels to one tensor, in the form that `Objective` describes."""
    if task.target == "single label":
        return torch.tensor(labels)
    if task.target == "regression":
        return torch.tensor(labels, dtype=torch.float32)
    if task.target == "generation":
        return torch.ones(len(labels), dtype=torch.long)
    flags = torch.zeros(len(labels), task.outputs)
    for row, of_row in enumerate(labels):
        flags[row, list(of_row)] = 1
    return flags


def as_labels(task: Task, labels: Tensor) -> list[Any]:
    """Converts a tensor of `as_tensor` back to a list of labels. For generation, each label is 1."""
    if task.target == "multi-label":
        return [tuple(row.nonzero()[:, 0].tolist()) for row in labels]
    return list(labels.tolist())


def check_answers(task: Task, split: str, answers: Sequence[str], ids: Sequence[int]) -> None:
    """Raises UserError if a correct answer has no final part, since every written answer would be wrong."""
    for answer, number in zip(answers, ids, strict=True):
        if not extracted(answer, task.answer_after):
            after = " or ".join(map(shown, task.answer_after))
            raise UserError(
                f"task '{task.name}': the answer of row {number}, in the {split} split, has nothing"
                f"{f' behind {after}' if after else ''} to compare with, got {shown(answer)}"
            )


#: Characters that are stripped from both ends of an answer that follows a phrase.
MARGIN = " .!?$%"


def extracted(text: str, phrases: Sequence[str]) -> str | None:
    """The final answer in a text, by the rule of peft's comparison of methods on MetaMathQA.

    Takes the first of `phrases` that occurs in the text. Returns what follows its last occurrence, up to the
    end of the first line that is not empty. Without `phrases`, returns the whole text. None if no phrase
    occurs.
    """
    if not phrases:
        return text.strip()
    text = text.strip().rstrip(".!?")
    phrase = next((phrase for phrase in phrases if phrase in text), None)
    if phrase is None:
        return None
    return text.rpartition(phrase)[2].strip().partition("\n")[0].strip(MARGIN)


def same(answer: str | None, right: str | None) -> bool:
    """Whether an answer is correct. Compares two numbers or fractions by value, anything else as texts.

    A missing answer is wrong. Unlike in peft, equal texts that read as NaN are equal.
    """
    if answer is None or right is None:
        return False
    number = _number(answer)
    return answer == right or (number is not None and number == _number(right))


def _number(text: str) -> float | None:
    try:
        over, *under = (Decimal(part.strip()) for part in text.split("/"))
        if len(under) > 1:
            return None
        return float(over / under[0] if under else over)
    except (ArithmeticError, ValueError):
        return None
