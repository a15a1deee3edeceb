"""Updates of linear layers of the original model, each of which may correspond to several sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tensorbench.backbones.fused import Split, SplitHeads


@dataclass(frozen=True)
class Update:
    """The low-rank update of one linear layer: down (r, in), up (out, r), bias (out,)."""

    down: Tensor
    up: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Fused:
    """A layer of the original model that was split into several layers on loading.

    For example, timm computes query, key and value in one layer. `parts` are the names of the layers into
    which it was split.
    """

    parts: tuple[str, ...]
    #: The head size if the layer's rows are ordered by head and, within each head, by part. None if they are
    #: ordered by part.
    head_size: int | None = None

    def ordered(self, rows: Tensor) -> Tensor:
        """Puts rows that are sorted by part into the order of the original layer."""
        if self.head_size is None:
            return rows
        return rows.unflatten(0, (len(self.parts), -1, self.head_size)).transpose(0, 1).flatten(0, 2)

    def update(self, updates: Sequence[Update | None], widths: Sequence[int]) -> Update:
        """Joins the updates of the parts to one update of the original layer, as `fuse` does.

        `widths` are the parts' output sizes.
        """
        joint = fuse(updates, widths)
        bias = None if joint.bias is None else self.ordered(joint.bias)
        return Update(joint.down, self.ordered(joint.up), bias)


def fused_layers(encoder: nn.Module) -> dict[str, Fused]:
    """The layers of an encoder that were split on loading, by their path in the encoder."""
    return {
        path: Fused(tuple(name for name, _ in module.named_children()), getattr(module, "head_size", None))
        for path, module in encoder.named_modules()
        if isinstance(module, Split | SplitHeads)
    }


def fuse(updates: Sequence[Update | None], widths: Sequence[int]) -> Update:
    """Joins the updates of layers with the same input to the update of one layer with all their outputs.

    `widths` are the layers' output sizes. None stands for a layer without an update. The result is exact.
    Its down factor stacks the layers' down factors, where equal ones are kept once. Its up factor contains
    each layer's up factor at rows and columns of its own, and zeros elsewhere.
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
    rows_of = [slice(sum(widths[:i]), sum(widths[: i + 1])) for i in range(len(widths))]
    up, bias = downs[0].new_zeros(sum(widths), starts[-1]), downs[0].new_zeros(sum(widths))
    for index, place in places.items():
        update, rows = updates[index], rows_of[index]
        assert update is not None
        up[rows, starts[place] : starts[place + 1]] = update.up
        if update.bias is not None:
            bias[rows] = update.bias
    biased = any(update is not None and update.bias is not None for update in updates)
    return Update(torch.cat(downs), up, bias if biased else None)


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)
