"""Tests the first step of Adam against a formula, and against one step of torch's own Adam."""

from __future__ import annotations

import math

import pytest
import torch

from tensorbench.methods import create
from tensorbench.methods.backbone import Geometry
from tensorbench.methods.base import attach
from tensorbench.methods.first_step import WEIGHT, first_step, first_step_of_lora
from tensorbench.methods.skeleton import SkeletonBackbone

GEOMETRY = Geometry(48, 4, 2, 96)


def test_the_step_is_that_of_adam() -> None:
    method, rate = create("lotr", rank=3), 1e-3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapter = attach(SkeletonBackbone.random(GEOMETRY), method)
    site = next(site for site in adapter.bases if str(site) == WEIGHT)
    before = adapter.delta(site)
    gradient = torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(adapter.named_parameters().values(), lr=rate, eps=1e-30)
    (before * gradient).sum().backward()
    optimizer.step()
    moved = (adapter.delta(site) - before).norm().item()
    assert first_step(method, GEOMETRY, rate) == pytest.approx(moved, rel=1e-4)


def test_the_step_of_lora_is_that_of_its_formula() -> None:
    adapter = attach(SkeletonBackbone.random(GEOMETRY), create("lora", rank=4))
    site = next(site for site in adapter.bases if str(site) == WEIGHT)
    down, _ = adapter.factors()[site]
    signs = torch.randn(48, 4, generator=torch.Generator().manual_seed(0)).sign()
    assert first_step_of_lora(GEOMETRY, 4, 1e-3) == pytest.approx(
        (1e-3 * signs @ down).norm().item(), rel=0.2
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [("lora_xs", {"rank": 2}), ("full", {}), ("loretta_adp", {"rank": 2}), ("dota", {"rank": 2})],
)
def test_methods_whose_step_depends_on_the_weights_have_none(name: str, options: dict[str, int]) -> None:
    assert first_step(create(name, **options), GEOMETRY, 1e-3) is None


def test_large_backbones_have_none_and_steps_grow_with_the_rate() -> None:
    method = create("lotr", rank=3)
    assert first_step(method, Geometry(4096, 32, 32, 11008), 1e-3) is None
    steps = [first_step(method, GEOMETRY, rate) for rate in (1e-6, 1e-5)]
    assert None not in steps
    assert math.isclose(steps[1] or 0, 10 * (steps[0] or 0), rel_tol=1e-2)
