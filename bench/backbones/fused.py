"""Query, key and value that a model computes in one layer, split so that every site is a Linear."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SplitQKV(nn.Module):
    """Query, key and value as three layers in the place of a fused one: same input, same output."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        weights = fused.weight.detach().chunk(3)
        biases = (None,) * 3 if fused.bias is None else fused.bias.detach().chunk(3)
        self.query, self.key, self.value = map(_linear, weights, biases)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.query(x), self.key(x), self.value(x)), dim=-1)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    # They are copies, so that the three layers share no storage with each other.
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone())
    return layer
