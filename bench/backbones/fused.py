"""Replaces fused and transposed layers by Linear layers, so that every site is a Linear of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

QKV = ("query", "key", "value")


class Split(nn.Module):
    """Replaces a fused linear layer by several linear layers, whose outputs it concatenates.

    `parts` are the names of these layers. `widths` are their numbers of outputs; by default, all parts have
    equally many. Raises ValueError if the widths do not add up to the outputs of the fused layer.
    """

    def __init__(
        self, fused: nn.Linear, parts: Sequence[str] = QKV, widths: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        sizes = [fused.out_features // len(parts)] * len(parts) if widths is None else list(widths)
        if sum(sizes) != fused.out_features:
            raise ValueError(f"{fused.out_features} outputs are not parts of {sizes}")
        weights = fused.weight.detach().split(sizes)
        biases = (None,) * len(parts) if fused.bias is None else fused.bias.detach().split(sizes)
        for name, weight, bias in zip(parts, weights, biases, strict=True):
            self.add_module(name, _linear(weight, bias))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.children()], dim=-1)

    def ordered(self, rows: Tensor) -> Tensor:
        """Returns `rows`, which are sorted by part, unchanged: the fused layer has the same order."""
        return rows


class SplitHeads(nn.Module):
    """Like `Split`, for a layer whose outputs are ordered by head.

    They are the query, key and value of each head in turn.
    """

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

    def ordered(self, rows: Tensor) -> Tensor:
        """Reorders rows that are sorted by part: the fused layer's rows are ordered by head."""
        return rows.unflatten(0, (3, -1, self.head_size)).transpose(0, 1).flatten(0, 2)


def transposed(layer: Any) -> nn.Linear:
    """Returns a Linear that computes the same as GPT-2's `Conv1D`, whose weight is (in, out)."""
    return _linear(layer.weight.detach().T, layer.bias.detach())


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    # Copied, so that layers share no storage.
    layer.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone())
    return layer
