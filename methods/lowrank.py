"""The shared machinery of every method whose update is a low-rank pair per site.

A method states its parameters and how they contract to factors (`Parametrisation`); the rest, from
injection to the forward, is here. Factors are contracted once per forward of the whole backbone, in
float32 outside autocast, and no dense update is built.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from methods.adapter import Adapter
from methods.backbone import SHARED_INPUT, Backbone, Geometry, Site
from methods.base import Method

#: Where dropout sits: on the activation that enters `down`, on the r-wide one that enters `up`, or on the
#: entries of the update itself, which a training forward then builds (slow: a d×d matrix for each site).
DropoutAt = Literal["input", "before_up", "update"]


@dataclass
class Contracted:
    """What a forward needs: `downs[i]` is (r, in); `ups[site]` is (out, r); `biases[site]` is (out,).

    `middles[site]`, where given, stands between the two: (r of the up, r of the down), or (r,) if diagonal.
    With n slices a matrix is n times as high (of the output) or as wide (of the input), and a vector, n · r
    long, holds a diagonal for each: all slices of the output then read the same r, dropout included, and
    those of the input are summed to it.
    """

    downs: list[Tensor]
    ups: dict[Site, Tensor]
    biases: dict[Site, Tensor] = field(default_factory=dict)
    middles: dict[Site, Tensor] = field(default_factory=dict)


class Parametrisation(nn.Module):
    """A method's trained parameters and their contraction to factors."""

    #: Which of the contracted `downs` each adapted site reads. Sites that share one compute it once.
    down_of: dict[Site, int]
    #: Sites (of an MLP, say) whose `down` applies to each of n equal slices of the input, the results
    #: side by side.
    input_slices: Mapping[Site, int] = MappingProxyType({})
    #: Sites whose `up` applies to each of n equal slices of the narrow activation, likewise.
    output_slices: Mapping[Site, int] = MappingProxyType({})

    @abstractmethod
    def contract(self) -> Contracted:
        """The factors of all sites, differentiable, scale included."""


class LowRankMethod(Method):
    """A method whose update of every site is `up @ down`."""

    #: Multiplies the update; not divided by any rank unless the method says so.
    scale: float = 1.0
    #: Dropout probability, at `dropout_at`.
    dropout: float = Field(0.0, ge=0.0, lt=1.0)

    dropout_at: ClassVar[DropoutAt] = "input"

    @abstractmethod
    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        """Builds and starts the parameters. The update they contract to is zero."""

    def put(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        parametrisation = self.parametrise(backbone.geometry, generator)
        return LowRankAdapter(backbone, parametrisation, self.dropout, self.dropout_at)


class LowRankAdapter(Adapter):
    """Low-rank pairs on a backbone's sites, contracted by a hook before its forward, dropped after."""

    def __init__(
        self,
        backbone: Backbone,
        parametrisation: Parametrisation,
        dropout: float = 0.0,
        dropout_at: DropoutAt = "input",
    ) -> None:
        super().__init__(backbone, parametrisation.down_of)
        reference = next(backbone.module.parameters())
        # Never below float32, where small steps of an optimizer would be lost to rounding.
        dtype = torch.promote_types(reference.dtype, torch.float32)
        self.parametrisation = parametrisation.to(device=reference.device, dtype=dtype)
        self._holding = False
        with torch.no_grad():
            widths = [down.shape[0] for down in self.contract().downs]
        self._inputs: list[_SharedInput] = []
        self._linears: dict[Site, AdaptedLinear] = {}
        for sites in _by_input(parametrisation.down_of):
            downs = tuple(dict.fromkeys(parametrisation.down_of[site] for site in sites))
            shared = _SharedInput(
                self,
                downs,
                widths=[widths[i] for i in downs],
                readers=len(sites),
                slices=parametrisation.input_slices.get(sites[0], 1),
                dropout=dropout if dropout_at == "input" else 0.0,
            )
            self._inputs.append(shared)
            for site in sites:
                self._linears[site] = AdaptedLinear(
                    self.bases[site],
                    shared,
                    downs.index(parametrisation.down_of[site]),
                    slices=parametrisation.output_slices.get(site, 1),
                    dropout=dropout if dropout_at != "input" else 0.0,
                    drops_update=dropout_at == "update" and dropout > 0,
                )
                self.install(site, self._linears[site])
        self._hooks = [
            backbone.module.register_forward_pre_hook(lambda *_: self._refresh()),
            backbone.module.register_forward_hook(lambda *_: self._drop(), always_call=True),
        ]

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.parametrisation.named_parameters())

    def contract(self) -> Contracted:
        with torch.autocast(next(self.backbone.module.parameters()).device.type, enabled=False):
            return self.parametrisation.contract()

    def factors(self) -> dict[Site, tuple[Tensor, Tensor]]:
        contracted = self.contract()
        method = self.parametrisation
        return {
            site: _pair(
                contracted.downs[method.down_of[site]],
                contracted.middles.get(site),
                up,
                method.input_slices.get(site, 1),
                method.output_slices.get(site, 1),
            )
            for site, up in contracted.ups.items()
        }

    def biases(self) -> dict[Site, Tensor]:
        return self.contract().biases

    @contextmanager
    def hold(self) -> Iterator[None]:
        with torch.no_grad():
            self._refresh()
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
            self._drop()

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._drop()
        super().detach()

    def _refresh(self) -> None:
        if not self._holding and not self.merged:
            self._distribute(self.contract())

    def _distribute(self, contracted: Contracted) -> None:
        joined: dict[tuple[int, ...], Tensor] = {}
        for shared in self._inputs:
            if shared.downs not in joined:
                parts = [contracted.downs[i] for i in shared.downs]
                joined[shared.downs] = parts[0] if len(parts) == 1 else torch.cat(parts)
            shared.down = joined[shared.downs]
        for site, linear in self._linears.items():
            linear.up = _unregistered(contracted.ups[site])
            linear.middle = _unregistered(contracted.middles.get(site))
            linear.bias_update = _unregistered(contracted.biases.get(site))

    def _drop(self) -> None:
        for shared in self._inputs:
            shared.forget()
            if not self._holding:
                shared.down = None
        if not self._holding:
            for linear in self._linears.values():
                linear.up = linear.middle = linear.bias_update = None

    def recontract(self) -> None:
        """Factors for a layer that runs outside the backbone's forward.

        Gradient checkpointing does so: it runs a layer again during backward. There only the values
        matter: gradients flow through the factors of the first run. Reentrant checkpointing sends them to
        these instead, where they would be lost: that raises RuntimeError.
        """
        if torch._C._current_graph_task_id() == -1:
            raise RuntimeError("an adapted layer was called outside the forward of its backbone's module")
        # Hooks of our own, so that the checkpoint does not take what the contraction saves for the layer's.
        with torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
            contracted = self.contract()
        self._distribute(
            Contracted(
                [_value(down) for down in contracted.downs],
                {site: _value(up) for site, up in contracted.ups.items()},
                {site: _value(bias) for site, bias in contracted.biases.items()},
                {site: _value(middle) for site, middle in contracted.middles.items()},
            )
        )
        torch.autograd.Variable._execution_engine.queue_callback(self._drop)


def _unregistered(factor: Tensor | None) -> Tensor | None:
    """A module takes any `nn.Parameter` that is assigned to it for one of its own, but not a view of it."""
    return factor.view_as(factor) if isinstance(factor, nn.Parameter) else factor


def _as_it_is(saved: Tensor) -> Tensor:
    return saved


def _value(factor: Tensor) -> Tensor:
    """A leaf with the factor's value: the recomputed layer must save what the first run saved."""
    value = factor.detach()
    if factor.requires_grad:
        value.requires_grad_().register_hook(_refuse_gradient)
    return value


def _refuse_gradient(_: Tensor) -> None:
    raise RuntimeError(
        "reentrant gradient checkpointing would lose the adapter's gradients: use_reentrant=False"
    )


class AdaptedLinear(nn.Module):
    """`base(x) + up(dropout(middle(down(x))))`; sites that read the same x share the down projection."""

    def __init__(
        self,
        base: nn.Linear,
        shared: _SharedInput,
        down: int,
        *,
        slices: int,
        dropout: float,
        drops_update: bool = False,
    ) -> None:
        super().__init__()
        self.training = base.training
        self.base = base
        #: Which of the downs of `shared` is this site's.
        self.down = down
        self.slices = slices
        self.dropout = dropout
        self.drops_update = drops_update
        self.up: Tensor | None = None
        self.middle: Tensor | None = None
        self.bias_update: Tensor | None = None
        # Held by the adapter, not by the module tree: its parameters are not this layer's.
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        """`x` is (..., in). The update goes into the base's own output: no further pass over it."""
        if self.up is None:
            self.shared.adapter.recontract()
        assert self.up is not None
        bias: Tensor | None = self.base.bias
        if self.bias_update is not None:
            bias = self.bias_update if bias is None else bias + self.bias_update
        # Flat, since autograd would copy gradients for an in-place operation on a view.
        y = F.linear(x.flatten(0, -2), self.base.weight, bias)
        if self.drops_update and self.training:
            y += self._update_by_entries(x).flatten(0, -2)
        else:
            narrow, up = self._before_up(self.shared.project(x, self.training)[self.down])
            # A view to autograd would be copied; this one it takes for a tensor of its own, as matmul does.
            y = torch.ops.aten._unsafe_view(y, (-1, len(up)))
            # In place, autocast does not cast, and on a GPU it has made a sum's result float32.
            y.addmm_(narrow.reshape(len(y), -1).to(y.dtype), up.T.to(y.dtype))
        return y.view(*x.shape[:-1], self.base.out_features)

    def _before_up(self, narrow: Tensor) -> tuple[Tensor, Tensor]:
        """What enters the up, and the up, from the projection (N, r) by the down."""
        up, middle = self.up, self.middle
        assert up is not None
        diagonals = None
        if middle is not None and middle.ndim == 2:
            narrow = F.linear(narrow, middle)
        elif middle is not None:
            diagonals = middle.unflatten(0, (-1, up.shape[1]))
            if self.shared.slices > 1:
                narrow = (narrow.unflatten(1, diagonals.shape) * diagonals.to(narrow.dtype)).sum(1)
                diagonals = None
        if self.dropout:
            narrow = F.dropout(narrow, self.dropout, self.training)
        if diagonals is None:
            return narrow, up
        # The smaller of a diagonal's neighbours is scaled.
        if len(narrow) < len(up):
            return (narrow.unsqueeze(1) * diagonals.to(narrow.dtype)).flatten(0, 1), up
        return narrow, (up * diagonals.unsqueeze(1)).flatten(0, 1)

    def _update_by_entries(self, x: Tensor) -> Tensor:
        down = self.shared.down
        assert down is not None
        assert self.up is not None
        own = down.split(self.shared.widths)[self.down]
        down, up = _pair(own, self.middle, self.up, self.shared.slices, self.slices)
        return F.linear(x, F.dropout(up @ down, self.dropout, self.training))


class _SharedInput:
    """The sites of a layer that read one activation, and the joined down factors that they share."""

    def __init__(
        self,
        adapter: LowRankAdapter,
        downs: tuple[int, ...],
        *,
        widths: list[int],
        readers: int,
        slices: int,
        dropout: float,
    ) -> None:
        self.adapter = adapter
        self.downs = downs
        #: Rows of each of the downs.
        self.widths = widths
        self.readers = readers
        self.slices = slices
        self.dropout = dropout
        self.down: Tensor | None = None
        self._input: Tensor | None = None
        self._narrow: tuple[Tensor, ...] = ()
        self._left = 0

    def project(self, x: Tensor, training: bool) -> tuple[Tensor, ...]:
        """The projection of x by each of the downs, (N, r), computed by the first site that reads this x."""
        if self._input is not x:
            assert self.down is not None
            dropped = F.dropout(x, self.dropout, training) if self.dropout else x
            self._input, self._left = x, self.readers
            narrow = _sliced_linear(dropped.flatten(0, -2), self.down, self.slices)
            self._narrow = (narrow,) if len(self.downs) == 1 else narrow.split(self.widths, -1)
        narrows = self._narrow
        self._left -= 1
        if not self._left:
            self.forget()
        return narrows

    def forget(self) -> None:
        self._input = None
        self._narrow = ()


def _sliced_linear(x: Tensor, weight: Tensor, slices: int) -> Tensor:
    """`weight` applied to each of the equal slices of x's last dimension, the results side by side."""
    if slices == 1:
        return F.linear(x, weight)
    return F.linear(x.unflatten(-1, (slices, -1)), weight).flatten(-2)


def _pair(
    down: Tensor, middle: Tensor | None, up: Tensor, input_slices: int, output_slices: int
) -> tuple[Tensor, Tensor]:
    """A site's (down, up), its middle and its slices multiplied out."""
    if middle is not None and middle.ndim == 1:
        diagonals = middle.unflatten(0, (-1, len(down)))
        if output_slices > 1:
            return down, (up * diagonals.unsqueeze(1)).flatten(0, 1)
        return (diagonals.T.unsqueeze(2) * down.unsqueeze(1)).flatten(1), up
    down = torch.block_diag(*[down] * input_slices)
    return down if middle is None else middle @ down, torch.block_diag(*[up] * output_slices)


def _by_input(sites: dict[Site, int]) -> list[list[Site]]:
    groups: dict[tuple[int, str], list[Site]] = {}
    for site in sites:
        source = "attention" if site.projection in SHARED_INPUT else site.projection
        groups.setdefault((site.layer, source), []).append(site)
    return list(groups.values())
