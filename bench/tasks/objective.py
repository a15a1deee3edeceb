"""Losses and scores for each kind of target: classes, several labels, numbers and written answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tensorbench.methods.errors import UserError, shown
from tensorbench.records.metrics import METRICS, Kind, Metric
from tensorbench.tasks.task import Task


@dataclass(frozen=True)
class Objective:
    """Computes loss and score from a backbone's outputs (N, outputs) and the labels of N examples.

    - Single label: outputs are logits. Labels are int64 (N,).
    - Multi-label: outputs are logits. Labels are 0 or 1, float (N, classes).
    - Regression: labels are float (N,), in their own unit. The single output predicts the standardised label,
      (label - `centre`) / `spread`, with mean and standard deviation of the training labels.
    - Generation: the three outputs are whether the written answer is correct, the log-likelihood of the
      tokens to predict, and the number of these tokens. Labels are 1, int64 (N,).
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
        """Returns the mean loss.

        This is the cross-entropy per example (single label), per label (multi-label) or per token
        (generation), or the squared error of the standardised targets (regression).
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
        """Returns the loss of the best constant output for these labels. None for generation.

        This is the entropy of the classes (single label), the mean entropy of the labels (multi-label) or the
        variance of the standardised targets (regression).
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
        """Returns the weight with which these examples' mean loss enters the mean loss of a larger batch.

        The weight is the number of examples, or for generation the number of tokens to predict.
        """
        return inputs["scored"][:, 1:].sum().item() if self.kind == "generation" else len(labels)

    def answers(self, outputs: Tensor) -> NDArray[Any]:
        """Converts outputs to predictions.

        These are class indices (N,), 0 or 1 for each class (N, classes), numbers (N,) in the unit of the
        labels, or for generation 1 for a correct text and 0 for a wrong one (N,).
        """
        if self.kind == "single label":
            return np.asarray(outputs.argmax(1))
        if self.kind == "multi-label":
            return np.asarray((outputs > 0).long())
        if self.kind == "generation":
            return np.asarray((outputs[:, 0] > 0).long())
        return np.asarray(outputs.squeeze(1).double() * self.spread + self.centre)

    def score(self, outputs: Tensor, labels: Tensor) -> float:
        """Returns the score of outputs, given labels. Both are on the CPU.

        Raises UserError if the metric is undefined for these labels.
        """
        predictions = self.answers(outputs) if self.metric.reads == "answers" else np.asarray(outputs)
        return self.score_of(predictions, np.asarray(self.targets(labels)))

    def score_of(self, predictions: NDArray[Any], targets: NDArray[Any]) -> float:
        """Returns the score of `predictions`, given the correct `targets`.

        `targets` have the form that the method `targets` returns. `Metric.reads` says whether `predictions`
        are outputs, or what the method `answers` returns. Raises UserError if the metric is undefined for
        these targets.
        """
        with METRICS.blaming(self.metric.name):
            return float(self.metric.score(targets, predictions))

    def targets(self, labels: Tensor) -> Tensor:
        """Converts labels for metrics and stored predictions. Multi-label labels become integers."""
        return labels.long() if self.kind == "multi-label" else labels

    def standardised(self, task: str, labels: Tensor) -> Objective:
        """Returns the objective with `centre` and `spread` of a regression's training labels (N,).

        For other kinds of target, the objective is returned unchanged. Raises UserError if all labels are
        equal. `task` is the task's name in the message.
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
    """Returns the objective of a task.

    Raises UserError for an unknown metric, and for one that cannot score the task's kind of target or its
    number of classes.
    """
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
    """Raises UserError if the task's metric is undefined for the labels of a split.

    Some metrics need examples with and without each class. `labels` have the form that `as_tensor` returns.
    """
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
    """Converts checked labels of `Examples` to a tensor in the form that `Objective` describes."""
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
    """Converts a tensor of `as_tensor` back to a list of labels. For generation, all labels are 1."""
    if task.target == "multi-label":
        return [tuple(row.nonzero()[:, 0].tolist()) for row in labels]
    return list(labels.tolist())


def check_answers(task: Task, split: str, answers: Sequence[str], ids: Sequence[int]) -> None:
    """Raises UserError if one of a split's correct answers has no final part (see `extracted`).

    Without a final part, there is nothing to compare a written answer with.
    """
    for answer, number in zip(answers, ids, strict=True):
        if not extracted(answer, task.answer_after):
            after = " or ".join(map(shown, task.answer_after))
            raise UserError(
                f"task '{task.name}': the answer of row {number}, in the {split} split, has nothing"
                f"{f' behind {after}' if after else ''} to compare with, got {shown(answer)}"
            )


#: Characters that are stripped from both ends of a final answer.
MARGIN = " .!?$%"


def extracted(text: str, phrases: Sequence[str]) -> str | None:
    """Returns the final answer in a text, by the rule of peft's comparison of methods on MetaMathQA.

    One phrase marks the final answer: the first item of `phrases` that the text contains. The answer is the
    first non-empty line after this phrase's last occurrence, without the characters of `MARGIN` at both ends.
    For example, the phrase "The answer is " gives "7" for the text "The answer is 6. The answer is 7!".

    If `phrases` is empty, the answer is the whole text without spaces at both ends. Returns None if the text
    contains no phrase.
    """
    if not phrases:
        return text.strip()
    text = text.strip().rstrip(".!?")
    phrase = next((phrase for phrase in phrases if phrase in text), None)
    if phrase is None:
        return None
    return text.rpartition(phrase)[2].strip().partition("\n")[0].strip(MARGIN)


def same(answer: str | None, right: str | None) -> bool:
    """Whether an answer equals the correct one.

    Numbers and fractions are compared by value, all other texts as texts. A missing answer is wrong. Unlike
    in peft, two answers "nan" are equal.
    """
    if answer is None or right is None:
        return False
    number = _number(answer)
    return answer == right or (number is not None and number == _number(right))


#: The largest power of ten in a number that is compared by its value, since `Fraction` writes it out.
_LARGEST_POWER = 10_000


def _number(text: str) -> Fraction | None:
    """Returns the exact value of a number or a fraction. None for other texts and beyond `_LARGEST_POWER`."""
    try:
        numbers = [Decimal(part.strip()) for part in text.split("/")]
        if len(numbers) > 2 or any(abs(number.adjusted()) > _LARGEST_POWER for number in numbers):
            return None
        over, *under = map(Fraction, numbers)
        return over / under[0] if under else over
    except (ArithmeticError, ValueError):
        return None
