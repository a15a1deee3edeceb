"""Projections that a model computes in one layer, split so that every site is a Linear."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

QKV = ("query", "key", "value")


class Split(nn.Module):
    """Several layers of equal width in the place of a fused one: same input, same output. `parts` names them.

    Raises ValueError for a layer whose outputs cannot be split so.
    """

    def __init__(self, fused: nn.Linear, parts: Sequence[str] = QKV) -> None:
        super().__init__()
        if fused.out_features % len(parts):
            raise ValueError(f"{fused.out_features} outputs are not {len(parts)} equal parts")
        weights = fused.weight.detach().chunk(len(parts))
        biases = (None,) * len(parts) if fused.bias is None else fused.bias.detach().chunk(len(parts))
        for name, weight, bias in zip(parts, weights, biases, strict=True):
            self.add_module(name, _linear(weight, bias))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.children()], dim=-1)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    # They are copies, so that the layers share no storage with each other.
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone())
    return layer
