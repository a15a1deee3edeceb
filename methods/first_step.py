"""How far Adam's first step moves a weight. A learning rate at which nothing trains shows itself there."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from tensorbench.methods.backbone import Geometry
from tensorbench.methods.base import Method, attach
from tensorbench.methods.skeleton import SkeletonBackbone

#: The weight that is looked at: the first layer's query projection, which nearly all methods adapt.
WEIGHT = "0.query"
#: The largest number of weights of a backbone that are drawn for this.
MOST_WEIGHTS = 200_000_000
#: The learning rate of the step.


def first_step(method: Method, geometry: Geometry, rate: float) -> float | None:
    """The Frobenius norm of the change of ΔW of `WEIGHT` in Adam's first step at this learning rate.

    Adam's first step moves each parameter by the rate against its gradient's sign, whatever its size (epsilon
    aside), so a random gradient of ΔW serves as well as that of a task. The backbone's weights are random.

    None if the method does not adapt this weight by an update ΔW, if it trains the weights themselves or
    computes tensors from them, and on backbones with more than `MOST_WEIGHTS` weights.
    """
    weights = geometry.layers * sum(math.prod(geometry.shape(name)) for name in geometry.projections)
    if weights > MOST_WEIGHTS or method.trains_weights or method.not_mergeable or method.needs_dense:
        return None
    if not method.count(geometry) or method.frozen_count(geometry):
        return None
    backbone = _skeleton(geometry)
    adapter = attach(backbone, method)
    try:
        site = next((site for site in adapter.bases if str(site) == WEIGHT), None)
        if site is None:
            return None
        before = adapter.delta(site)
        gradient = torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
        parameters = [*adapter.named_parameters().values()]
        slopes = torch.autograd.grad((before * gradient).sum(), parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, slope in zip(parameters, slopes, strict=True):
                if slope is not None:
                    parameter.sub_(rate * slope.sign())
            return float((adapter.delta(site) - before).norm())
    finally:
        adapter.detach()


@lru_cache(maxsize=2)
def _skeleton(geometry: Geometry) -> SkeletonBackbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SkeletonBackbone.random(geometry)


def first_step_of_lora(geometry: Geometry, rank: int, rate: float) -> float:
    """The expectation of `first_step` for LoRA: B starts at zero, and A is uniform in ±1/√d."""
    out, _ = geometry.shape("query")
    return rate * math.sqrt(out * rank / 3)
