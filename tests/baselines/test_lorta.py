"""Tests LoRTA against the full five-way tensor of its CP sum."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tensorbench.methods import PROJECTIONS, Geometry

from ..methods.oracle import (
    BASE,
    EVEN,
    RANK,
    SCALE,
    SMOLLM2,
    TOLERANCE,
    StackedOracle,
    Values,
    assert_uniform,
    factors,
    stacked,
)


class TestLoRTA(StackedOracle):
    name = "lorta"
    zero = "factor_1"
    published = [
        ({"rank": 4}, BASE, 3_440),
        ({"rank": 8}, BASE, 6_880),
        ({"rank": 64}, BASE, 55_040),
        ({"rank": 256}, BASE, 220_160),
        ({"rank": 4}, SMOLLM2, 4 * (576 + 64 + 9 + 30 + 4)),
    ]

    def tensors(self, values: Values) -> dict[str, Tensor]:
        return {"tensor": torch.einsum("dr,hr,Hr,lr,pr->dhHlp", *factors(values))}

    def slices(self, values: Values, geometry: Geometry) -> Callable[[int, str], list[Tensor]]:
        full = SCALE / RANK * self.tensors(values)["tensor"].permute(3, 4, 2, 1, 0)
        return stacked(full.flatten(2, 3), geometry, *PROJECTIONS[:4])

    def turned(self, geometry: Geometry) -> set[str]:
        """The projections that use their slice transposed.

        These are all four, or only the output projection if the attention is not d wide.
        """
        return super().turned(geometry) or set(PROJECTIONS[:4])

    def formula(self, geometry: Geometry, rank: int) -> int:
        sizes = geometry.hidden + geometry.head_size + geometry.heads
        return rank * (sizes + geometry.layers + 4)

    def test_a_head_is_a_block_on_the_split_side(self) -> None:
        """If the head factor is zero except for one head, only the channels of this head are updated."""
        geometry = EVEN[1]
        _, adapter = self.attached(geometry)
        heads = adapter.named_parameters()["tensor.factors.factor_2"]
        with torch.no_grad():
            heads[torch.arange(geometry.heads) != 2] = 0
        size = geometry.head_size
        for site, delta in adapter.deltas():
            touched = delta.any(0) if site.projection in self.turned(geometry) else delta.any(1)
            assert touched.nonzero().flatten().tolist() == list(range(2 * size, 3 * size))

    def test_the_rest_starts_uniform(self) -> None:
        rank = 256
        first, _, *shared = factors(self.start(rank=rank))
        assert_uniform(first, 1 / math.sqrt(rank))
        for factor in shared:
            assert_uniform(factor, math.sqrt(6 / rank))


class TestOutputHeads(TestLoRTA):
    options = {**TestLoRTA.options, "orientation": "output_heads"}

    def turned(self, geometry: Geometry) -> set[str]:
        return super(TestLoRTA, self).turned(geometry)

    def test_it_is_the_transpose_of_the_reference(self) -> None:
        _, reference = self.attached(EVEN[0], orientation="reference")
        _, adapter = self.attached(EVEN[0])
        for site, delta in adapter.deltas():
            torch.testing.assert_close(delta, reference.delta(site).T, **TOLERANCE)
            assert not torch.allclose(delta, reference.delta(site))
