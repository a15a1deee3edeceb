"""Tests full fine-tuning: gradients after detaching, and updates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

import tensorbench.methods
from tensorbench.methods import Geometry

from ..methods.oracle import EVEN
from ..methods.toy import ToyBackbone


def attached(geometry: Geometry) -> tuple[ToyBackbone, Any]:
    """A backbone that states the size of its encoder, and full fine-tuning as the adapter on it."""
    backbone = ToyBackbone(geometry)
    head = {id(parameter) for parameter in backbone.head.parameters()}
    encoder = sum(p.numel() for p in backbone.module.parameters() if id(p) not in head)
    backbone.geometry = replace(geometry, encoder=encoder)
    return backbone, tensorbench.methods.create("full").attach(backbone, torch.Generator())


def test_no_gradient_stays_on_the_encoder() -> None:
    backbone, adapter = attached(EVEN[0])
    backbone.module(backbone.inputs()).sum().backward()
    encoder = adapter.named_parameters().values()
    assert all(parameter.grad is not None for parameter in encoder)
    adapter.detach()
    assert all(parameter.grad is None for parameter in encoder)


def test_an_update_is_what_a_weight_has_moved_by() -> None:
    _, adapter = attached(EVEN[0])
    before = {site: base.weight.detach().clone() for site, base in adapter.bases.items()}
    with torch.no_grad():
        for parameter in adapter.named_parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    deltas = dict(adapter.deltas())
    for site, base in adapter.bases.items():
        torch.testing.assert_close(before[site] + adapter.delta(site), base.weight.detach())
        torch.testing.assert_close(before[site] + deltas[site], base.weight.detach())
