"""Tests that LoRA, the reference of every comparison, is the published method."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tensorbench.methods import Geometry, create

from ..methods.oracle import BASE, RANK, SCALE, SMOLLM2, Dense, LowRankOracle, Values
from ..methods.toy import ToyBackbone


class TestLoRA(LowRankOracle):
    name = "lora"
    options = {"rank": RANK, "scale": SCALE, "targets": "qkvo+mlp"}
    zero = "lora_B"
    published = [
        ({"rank": 4, "targets": "qkv"}, BASE, 221_184),
        ({"rank": 3, "targets": "qkvo"}, BASE, 221_184),
        ({"rank": 1}, BASE, 165_888),
        ({"rank": 2}, BASE, 331_776),
        ({"rank": 4, "targets": "qkv"}, SMOLLM2, 4 * 30 * ((576 + 576) + 2 * (576 + 192))),
        ({"rank": 1}, SMOLLM2, 30 * (2 * 1152 + 2 * 768 + 3 * (576 + 1536))),
    ]
    test_dropout_sits_where_the_method_has_it = None  # peft applies its own dropout

    def dense(self, values: Values, geometry: Geometry) -> Dense:
        updates: Dense = {}
        for site in geometry.sites(geometry.projections):
            a, b = (values[f"model.layers.{site}.lora_{side}.default.weight"] for side in "AB")
            updates[site] = SCALE * b @ a, None
        return updates

    def formula(self, geometry: Geometry, rank: int) -> int:
        return geometry.layers * rank * sum(sum(geometry.shape(name)) for name in geometry.projections)


@pytest.mark.parametrize("rank", [4, 32])
def test_it_starts_as_published(rank: int) -> None:
    backbone = ToyBackbone(Geometry(48, 4, 2, 192))
    adapter: Any = create("lora", rank=rank, targets="qkvo+mlp").attach(
        backbone, torch.Generator().manual_seed(0)
    )
    for name, parameter in adapter.named_parameters().items():
        if "lora_A" in name:
            bound = 1 / math.sqrt(parameter.shape[1])
            assert 0.95 * bound < parameter.abs().max() <= bound
            assert abs(parameter.std() / (bound / math.sqrt(3)) - 1) < 0.15
