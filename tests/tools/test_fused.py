"""Tests that trials trained together are the trials trained alone, within the rounding of sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tensorbench.backbones import LoadedBackbone
from tensorbench.backbones.answers import put_head
from tensorbench.methods import from_identity
from tensorbench.plan.trial import Trial
from tensorbench.training import loop
from tensorbench.training.seeding import generator
from tensorbench.training.trial import Resources
from tools.benchmarks import fused

from ..bench.toy_suites import TEXT, plan

METHODS = [
    {"method": "lora", "rank": 2},
    {"method": "lora", "rank": 3, "training": {"lr": 2e-2}},
    {"method": "tenslora", "variant": "att_qkv_depth", "ranks": [2, 2, 2, 2, 2]},
    {"method": "lotr", "rank": 2},
]
#: More than an epoch, whose last batch is smaller.
STEPS = 6


def head_start(trial: Trial) -> torch.Generator:
    return generator(trial.seed, "head_start")


def in_double(backbone: LoadedBackbone, *rest: Any) -> None:
    put_head(backbone, *rest)
    backbone.head.double()


def alone(trial: Trial, resources: Resources) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses and the last state of a trial that the harness trains by itself."""
    backbone = resources.backbone(trial)
    data = resources.data(trial, backbone.info.input)
    in_double(backbone, trial.task.input(backbone.info.input), data.classes, head_start(trial))
    adapter = from_identity(trial.method).attach(backbone, generator(trial.seed, "adapter_start"))
    losses: list[float] = []
    try:
        loop.train(
            backbone,
            adapter,
            data,
            trial.recipe,
            trial.seed,
            lambda progress: losses.extend(loss for _, loss in progress.losses),
        )
        return losses, adapter.state()
    finally:
        adapter.detach()


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_trials_trained_together_are_those_trained_alone(
    seeds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "put_head", in_double)
    training = {"steps": STEPS, "batch_size": 16, "select": "last", "clip": 1.0, "lr": 5e-3}
    # Without dropout in the backbone, which would draw other numbers.
    made = plan(
        TEXT, backbones=["tiny-random-llama"], methods=METHODS, budgets=[], seeds=seeds, training=training
    )
    resources = Resources("cpu")
    # AdamW makes a whole step of a nearly zero gradient, whose sign in float32 is rounding.
    resources.backbone(made.trials[0]).module.double()
    clean = resources.backbone(made.trials[0]).fingerprint()
    members = fused.train(made.trials, resources)
    assert resources.backbone(made.trials[0]).fingerprint() == clean
    assert [member.trial for member in members] == list(made.trials)
    for member in members:
        losses, state = alone(member.trial, resources)
        assert len(losses) == STEPS, member.trial.method
        torch.testing.assert_close(
            torch.tensor(member.losses),
            torch.tensor(losses),
            rtol=1e-6,
            atol=1e-6,
            msg=str(member.trial.method),
        )
        for name, value in member.adapter.state().items():
            torch.testing.assert_close(value, state[name], rtol=1e-5, atol=1e-6)
