"""What an adapter adds to the linear layers of a model, as the model's library has these layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Update:
    """The low-rank update of one linear layer: down (r, in), up (out, r), bias (out,)."""

    down: Tensor
    up: Tensor
    bias: Tensor | None = None


def fuse(updates: Sequence[Update | None], width: int) -> Update:
    """One update of layers that read one input and whose outputs, `width` each, lie side by side.

    Its rank is that of the distinct downs together. Layers without an update have None.
    """
    downs: list[Tensor] = []
    places: dict[int, int] = {}
    for index, update in enumerate(updates):
        if update is not None:
            same = [i for i, down in enumerate(downs) if _same(down, update.down)]
            places[index] = same[0] if same else len(downs)
            if not same:
                downs.append(update.down)
    starts = [sum(down.shape[0] for down in downs[:i]) for i in range(len(downs) + 1)]
    up = downs[0].new_zeros(len(updates) * width, starts[-1])
    bias = downs[0].new_zeros(len(updates) * width)
    for index, place in places.items():
        update, rows = updates[index], slice(index * width, (index + 1) * width)
        assert update is not None
        up[rows, starts[place] : starts[place + 1]] = update.up
        if update.bias is not None:
            bias[rows] = update.bias
    biased = any(update is not None and update.bias is not None for update in updates)
    return Update(torch.cat(downs), up, bias if biased else None)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
