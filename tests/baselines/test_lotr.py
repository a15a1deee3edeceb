"""Tests LoTR against (scale / r) · x·right·M·left, matrix by matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tensorbench.methods import Geometry

from ..methods.oracle import BASE, RANK, SCALE, SMOLLM2, StackedOracle, Values, factors, stacked


class TestLoTR(StackedOracle):
    name = "lotr"
    zero = "factor_1"
    published = [
        ({"rank": 4}, BASE, 6_528),
        ({"rank": 8}, BASE, 13_824),
        ({"rank": 16}, BASE, 30_720),
        ({"rank": 32}, BASE, 73_728),
        ({"rank": 4}, SMOLLM2, 4 * (576 + 576) + 2 * 30 * 4**2),
    ]

    def tensors(self, values: Values) -> dict[str, Tensor]:
        names = {key.rpartition(".factors")[0] for key in values}
        return {name: torch.einsum("xia,asb,boy->iso", *factors(values, name)) for name in sorted(names)}

    def slices(self, values: Values, geometry: Geometry) -> Callable[[int, str], list[Tensor]]:
        # A joint tensor has axes (layer, projection); each of two separate tensors has layers only.
        layers = [tensor.unflatten(1, (geometry.layers, -1)) for tensor in self.tensors(values).values()]
        full = SCALE / RANK * torch.cat(layers, 2).permute(1, 2, 3, 0)
        return stacked(full, geometry, "query", "value")

    def formula(self, geometry: Geometry, rank: int) -> int:
        ends = (geometry.hidden + geometry.attention_width) * rank
        return len(self.start(geometry)) // 3 * ends + 2 * geometry.layers * rank**2

    def test_ends_start_normal(self) -> None:
        ends = [value for key, value in self.start(rank=32).items() if not key.endswith("factor_1")]
        for end in ends:
            assert abs(end.mean()) < 0.03
            assert abs(end.std() - 1) < 0.03
            # Values beyond three standard deviations rule out a uniform distribution of the same spread.
            assert end.abs().max() > 3
        assert not torch.equal(ends[0].flatten(), ends[-1].flatten())


class TestSeparateTensors(TestLoTR):
    options = {**TestLoTR.options, "tensors": "separate"}
    # Adds only a second pair of shared factors.
    published = [({"rank": 4}, BASE, 6_528 + 2 * 768 * 4), ({"rank": 32}, BASE, 73_728 + 2 * 768 * 32)]
