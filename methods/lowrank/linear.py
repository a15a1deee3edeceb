"""Adapted linear layers, and the activations that several of them share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorbench.methods.adapter import AdaptedLayer
from tensorbench.methods.lowrank.contracted import Diagonal, Matrix, Middle, pair
from tensorbench.methods.lowrank.masks import DropoutSite
from tensorbench.methods.quantised import QuantisedLinear
from tensorbench.methods.torch_internals import reshaped

#: Where dropout is applied. `input`: to the activation that enters `down`. `before_up`: to the activation of
#: width r that enters `up`. `update`: to the entries of the update; this is slow, since training then builds
#: the dense update of every site.
DropoutAt = Literal["input", "before_up", "update"]


class SharedInput:
    """The down factors of sites that read the same activation, and the products of factors and activation.

    `indices` are the positions of these factors in `Contracted.downs`, and `readers` is the number of sites.
    Each factor is applied to `input_slices` slices of the activation or, if that is 0, to all of it at once.
    With `dropout`, training drops entries of the activation. `recontract` computes the factors again if a
    layer is called while no factors are held.
    """

    def __init__(
        self,
        recontract: Callable[[], None],
        indices: tuple[int, ...],
        *,
        readers: int,
        input_slices: int,
        dropout: DropoutSite | None,
    ) -> None:
        self.recontract = recontract
        self.indices = indices
        self.readers = readers
        self.input_slices = input_slices
        self.dropout = dropout
        #: The down factors, one below the other. None while the adapter holds no factors.
        self.down: Tensor | None = None
        #: The number of rows of each down factor in `down`.
        self.widths: list[int] = []
        self._input: Tensor | None = None
        self._narrow: tuple[Tensor, ...] = ()
        self._left = 0

    def project(self, x: Tensor, training: bool) -> tuple[Tensor, ...]:
        """Multiplies x by each down factor. Each result is (N, r), where N is the number of vectors in x.

        The first site that reads this x computes the results for all sites that read it.
        """
        if self._input is not x:
            assert self.down is not None
            dropped = self.dropout.drop(x) if self.dropout and training else x
            self._input, self._left = x, self.readers
            narrow = _by_slices(dropped.flatten(0, -2), self.down, self.input_slices)
            self._narrow = (narrow,) if len(self.indices) == 1 else narrow.split(self.widths, -1)
        narrows = self._narrow
        self._left -= 1
        if not self._left:
            self.forget()
        return narrows

    def forget(self) -> None:
        """Releases the activation and its products with the down factors."""
        self._input = None
        self._narrow = ()


class AdaptedLinear(AdaptedLayer):
    """A linear layer with an update: `base(x) + up(middle(down(x)))`.

    Factors exist only during a forward of the backbone, inside `Adapter.hold`, and while a backward pass
    recomputes layers. Layers that read the same x share `shared`, which computes `down(x)` once for all of
    them. `position` is the position of this layer's down factor in `shared`. The output has `output_slices`
    slices, and the same up factor computes each. Dropout of the input is in `shared`. The layer's own
    `dropout` applies before `up` or, if it is `of_weight`, to the entries of the update itself.
    """

    def __init__(
        self,
        base: nn.Linear,
        shared: SharedInput,
        position: int,
        *,
        output_slices: int,
        dropout: DropoutSite | None,
    ) -> None:
        super().__init__(base)
        self.position = position
        self.output_slices = output_slices
        self.dropout = dropout
        self.up: Tensor | None = None
        self.middle: Middle | None = None
        self.bias_update: Tensor | None = None
        # Held in a way that does not register it: the adapter's parameters do not belong to this layer.
        self.shared = shared

    def receive(self, up: Tensor, middle: Middle | None, bias_update: Tensor | None) -> None:
        """Stores the factors for the next forward."""
        self.up, self.middle, self.bias_update = _unregistered(up), middle, _unregistered(bias_update)

    def forget(self) -> None:
        """Releases the factors."""
        self.up = self.middle = self.bias_update = None

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., out) for x (..., in). The update is added in place to the base layer's output."""
        if self.up is None:
            self.shared.recontract()
        # Two-dimensional, since autograd copies gradients for an in-place operation on a view.
        y = self._of_base(x.flatten(0, -2))
        if self.training and self.dropout and self.dropout.of_weight:
            y += self._by_entries(self.dropout, x).flatten(0, -2)
        else:
            y = self._with_update(y, *self._before_up(self.shared.project(x, self.training)[self.position]))
        if self.training and (dropout := self.dropout or self.shared.dropout):
            dropout.masks.remember(y)
        return y.view(*x.shape[:-1], self.base.out_features)

    def _of_base(self, x: Tensor) -> Tensor:
        """Returns the base layer's output, with the update of its bias."""
        if self.bias_update is None:
            return self.base(x)
        if isinstance(self.base, QuantisedLinear):
            # It computes its output itself, so that autograd does not keep a dense weight.
            y: Tensor = self.base(x)
            return y + self.bias_update.to(y.dtype)
        bias = self.bias_update if self.base.bias is None else self.base.bias + self.bias_update
        return F.linear(x, self.base.weight, bias)

    def _with_update(self, y: Tensor, narrow: Tensor, up: Tensor) -> Tensor:
        """Adds the update to `y` (N, out) in place. Returns `y`, possibly reshaped."""
        out = y.shape[1]
        if len(up) > out:
            up = up[:out]
        # Autocast does not cast in-place operations, and on a GPU it made a sum's result float32.
        narrow, up = narrow.reshape(-1, up.shape[1]).to(y.dtype), up.to(y.dtype)
        if out % len(up):
            y += F.linear(narrow, up).reshape(len(y), -1)[:, :out]
            return y
        # Nothing else references `y`.
        return reshaped(y, (-1, len(up))).addmm_(narrow, up.T)

    def _before_up(self, narrow: Tensor) -> tuple[Tensor, Tensor]:
        """Given the down-projection's output (N, r), returns the up-projection's input and weight."""
        up, middle = self.up, self.middle
        assert up is not None
        if isinstance(middle, Matrix):
            narrow = F.linear(narrow, middle.entries)
        elif isinstance(middle, Diagonal) and self.shared.input_slices > 1:
            narrow, middle = middle.summed(narrow), None
        if self.dropout and self.training:
            narrow = self.dropout.drop(narrow)
        # The mask commutes with a diagonal, so the diagonal may scale whichever operand is smaller.
        return middle.scaled(narrow, up) if isinstance(middle, Diagonal) else (narrow, up)

    def _by_entries(self, dropout: DropoutSite, x: Tensor) -> Tensor:
        """Multiplies x by the dense update, after dropping some of the update's entries."""
        assert self.up is not None
        assert self.shared.down is not None
        own = self.shared.down.split(self.shared.widths)[self.position]
        shape = (self.base.out_features, self.base.in_features)
        slices = max(self.shared.input_slices, 1)
        down, up = pair(own, self.middle, self.up, shape, slices, self.output_slices)
        return F.linear(x, dropout.drop(up @ down))


def _unregistered(factor: Tensor | None) -> Tensor | None:
    """Returns a view of a parameter, so that a module can hold it without registering it.

    Other tensors and None are returned unchanged.
    """
    return factor.view_as(factor) if isinstance(factor, nn.Parameter) else factor


def _by_slices(x: Tensor, weight: Tensor, slices: int) -> Tensor:
    """Applies `weight` to slices of x's last dimension, with results side by side.

    Slices are as wide as the weight; the last one may be narrower. With `slices` 0, x is not sliced.
    """
    if not slices:
        return F.linear(x, weight)
    width = weight.shape[1]
    left = x.shape[-1] % width
    if not left:
        return F.linear(x.unflatten(-1, (-1, width)), weight).flatten(-2)
    *full, last = x.split(width, -1)
    narrow = F.linear(last, weight[:, :left])
    return torch.cat([_by_slices(torch.cat(full, -1), weight, slices - 1), narrow], -1) if full else narrow
