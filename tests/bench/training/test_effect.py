"""Tests the measures that show a training without effect: changes of outputs, and the loss of guessing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tensorbench.metrics import METRICS
from tensorbench.records.measures import Measure
from tensorbench.tasks import Objective
from tensorbench.training.effect import effect
from tensorbench.training.ending import finished
from tensorbench.training.trial import Outcome, Resources, run_trial

from ..toy_suites import VISION, plan


@pytest.fixture(scope="module")
def resources() -> Resources:
    return Resources("cpu")


def run(resources: Resources, method: Any, lr: float) -> Outcome:
    training = {**VISION["training"], "lr": lr, "head_lr": 5e-3, "lr_floor": 0.0}
    (trial,) = plan(methods=[method], training=training).trials
    return run_trial(trial, resources, lambda progress: None)


@pytest.mark.parametrize(
    "method",
    [
        "lora",
        {"method": "tenslora", "variant": "att"},
        "full",
        {"method": "peft", "type": "IA3"},
        {"method": "peft", "type": "LOHA"},
    ],
    ids=str,
)
def test_an_adapter_that_did_not_move_has_no_effect_and_one_that_did_has(
    resources: Resources, method: Any
) -> None:
    still, moved = run(resources, method, 1e-12), run(resources, method, 3e-2)
    assert finished(still).metrics[Measure.ADAPTER_EFFECT] < 1e-4
    assert finished(moved).metrics[Measure.ADAPTER_EFFECT] > 1e-2


def test_the_head_alone_has_no_adapter_to_speak_of(resources: Resources) -> None:
    outcome = run(resources, "head_only", 1e-3)
    assert Measure.ADAPTER_EFFECT not in finished(outcome).metrics
    # Ten digits, almost equally frequent.
    assert finished(outcome).metrics[Measure.GUESSING_LOSS] == pytest.approx(math.log(10), abs=0.3)


def test_an_effect_is_relative_to_how_outputs_differ_by_example() -> None:
    bare = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
    assert effect(bare, bare) == 0
    assert effect(2 * bare, bare) == pytest.approx(math.sqrt(2) / 2)
    # Larger outputs with proportionally larger differences.
    assert effect(20 * bare, 10 * bare) == pytest.approx(math.sqrt(2) / 2)
    assert effect(torch.ones(2, 2), torch.zeros(2, 2)) is None


@pytest.mark.parametrize(
    ("metric", "kind", "labels", "answer"),
    [
        ("accuracy", "single label", torch.tensor([0, 0, 0, 2]), torch.tensor([0.75, 0.0, 0.25]).log()),
        (
            "f1_macro",
            "multi-label",
            torch.tensor([[1.0, 0], [0, 0], [0, 1], [0, 1]]),
            torch.tensor([0.25, 0.5]).logit(),
        ),
        ("rmse", "regression", torch.tensor([1.0, 2.0, 6.0]), torch.tensor([(3.0 - 2.0) / 4.0])),
    ],
)
def test_guessing_is_the_best_constant_answer(metric: str, kind: Any, labels: Tensor, answer: Tensor) -> None:
    objective = Objective(METRICS.get(metric), kind, len(answer), centre=2.0, spread=4.0)
    best = objective.loss(answer.clamp(min=-1e4).expand(len(labels), -1), labels).item()
    assert objective.guessing_loss(labels) == pytest.approx(best)
    other = answer.clamp(min=-1e4) + 0.1 * F.one_hot(torch.tensor(0), len(answer))
    assert objective.loss(other.expand(len(labels), -1), labels).item() > best


def test_written_answers_have_no_constant_baseline() -> None:
    objective = Objective(METRICS.get("exact_match"), "generation", 3)
    assert objective.guessing_loss(torch.ones(4, dtype=torch.long)) is None
