"""Full fine-tuning gives the backbone back."""

from __future__ import annotations

from dataclasses import replace

import torch

import methods
from methods import Geometry

from .dense import SmallBackbone, inputs


def test_no_gradient_stays_on_the_encoder() -> None:
    geometry = Geometry(24, 4, 3, 96)
    backbone = SmallBackbone(geometry)
    head = {id(parameter) for parameter in backbone.head.parameters()}
    encoder = [parameter for parameter in backbone.module.parameters() if id(parameter) not in head]
    backbone.geometry = replace(geometry, encoder=sum(parameter.numel() for parameter in encoder))
    adapter = methods.create("full").attach(backbone, torch.Generator())
    backbone.module(inputs(geometry)).sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.named_parameters().values())
    adapter.detach()
    assert all(parameter.grad is None for parameter in encoder)
