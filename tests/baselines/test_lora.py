"""LoRA, the reference of every comparison, is the published one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import methods
from methods import Geometry

from .dense import BASE, SmallBackbone


@pytest.mark.parametrize("rank", [4, 32])
def test_it_is_scale_b_a_and_starts_as_published(rank: int) -> None:
    adapter: Any = methods.create("lora", rank=rank, scale=1.7, targets="qkvo+mlp").attach(
        SmallBackbone(Geometry(48, 4, 2, 192)), torch.Generator().manual_seed(0)
    )
    for site, layer in adapter._adapted.items():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        # Uniform, by its bound and its spread.
        bound = 1 / math.sqrt(a.shape[1])
        assert 0.95 * bound < a.abs().max() <= bound
        assert abs(a.std() / (bound / math.sqrt(3)) - 1) < 0.15
        assert not b.any()
        with torch.no_grad():
            b.normal_(generator=torch.Generator().manual_seed(1))
        wanted = 1.7 * b.detach() @ a.detach()
        torch.testing.assert_close(adapter.delta(site), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("targets", "rank", "count"),
    [("qkv", 4, 221_184), ("qkvo", 3, 221_184), ("qkvo+mlp", 1, 165_888), ("qkvo+mlp", 2, 331_776)],
)
def test_counts(targets: str, rank: int, count: int) -> None:
    assert methods.create("lora", rank=rank, targets=targets).count(BASE) == count
