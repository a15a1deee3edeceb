"""Layers of a model that are not one Linear for each site, in the form in which every site is one."""

from __future__ import annotations

from typing import Any

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


class SplitHeads(nn.Module):
    """The same for a layer whose channels are query, key and value of the first head, then of the second."""

    def __init__(self, fused: nn.Linear, head_size: int) -> None:
        super().__init__()
        self.head_size = head_size
        parts = (3, head_size)
        weights = fused.weight.detach().unflatten(0, (-1, *parts)).unbind(1)
        biases: Any = (None,) * 3
        if fused.bias is not None:
            biases = (bias.flatten() for bias in fused.bias.detach().unflatten(0, (-1, *parts)).unbind(1))
        self.query, self.key, self.value = map(_linear, (weight.flatten(0, 1) for weight in weights), biases)

    def forward(self, x: Tensor) -> Tensor:
        parts = (layer(x).unflatten(-1, (-1, self.head_size)) for layer in (self.query, self.key, self.value))
        return torch.stack(tuple(parts), dim=-2).flatten(-3)


def transposed(layer: Any) -> nn.Linear:
    """A Linear in the place of GPT-2's Conv1D, whose weight is (in, out)."""
    return _linear(layer.weight.detach().T, layer.bias.detach())


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    # They are copies, so that the three layers share no storage with each other.
    layer.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone())
    return layer
