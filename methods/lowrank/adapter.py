"""The adapter that puts a method's low-rank pairs on a backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tensorbench.methods.adapter import Adapter
from tensorbench.methods.backbone import GATED_INPUT, SHARED_INPUT, Backbone, Site
from tensorbench.methods.lowrank.contracted import Contracted, Parametrisation, pair
from tensorbench.methods.lowrank.linear import AdaptedLinear, DropoutAt, SharedInput
from tensorbench.methods.lowrank.masks import BatchPart, Masks
from tensorbench.methods.torch_internals import at_end_of_backward, in_backward

#: Converts the contracted pairs of a parametrisation to the shapes of a backbone's sites.
Fit = Callable[[Contracted, Parametrisation], Contracted]


class LowRankAdapter(Adapter):
    """An adapter with a low-rank pair for each site.

    One hook contracts the factors before each forward of the backbone's module. Another hook releases them
    after the forward, even if the forward raises. `masks` is the dropout, applied at `dropout_at`. `fit`
    converts the contracted pairs to the shapes of the backbone's sites.
    """

    def __init__(
        self,
        backbone: Backbone,
        parametrisation: Parametrisation,
        masks: Masks | None = None,
        dropout_at: DropoutAt = "input",
        fit: Fit | None = None,
    ) -> None:
        super().__init__(backbone, parametrisation.down_of)
        reference = next(backbone.module.parameters())
        # At least float32: in lower precision, rounding would swallow small optimizer steps.
        dtype = torch.promote_types(reference.dtype, torch.float32)
        self.parametrisation = parametrisation.to(device=reference.device, dtype=dtype)
        self.masks = masks
        self._fit = fit
        self._holding = False
        self._inputs: list[SharedInput] = []
        self._linears: dict[Site, AdaptedLinear] = {}
        for sites in _by_input(parametrisation.down_of):
            indices = tuple(dict.fromkeys(parametrisation.down_of[site] for site in sites))
            shared = SharedInput(
                self.recontract,
                indices,
                readers=len(sites),
                input_slices=parametrisation.input_slices.get(sites[0], 0),
                dropout=masks.place() if masks is not None and dropout_at == "input" else None,
            )
            self._inputs.append(shared)
            for site in sites:
                place = None
                if masks is not None and dropout_at != "input":
                    place = masks.place(of_weight=dropout_at == "update")
                self._linears[site] = AdaptedLinear(
                    self.bases[site],
                    shared,
                    indices.index(parametrisation.down_of[site]),
                    output_slices=parametrisation.output_slices.get(site, 1),
                    dropout=place,
                )
                self.install(site, self._linears[site])
        if self.named_parameters():
            self.register(self.parametrisation)
        # Bound methods, so that a deep copy of the backbone's module calls its own copy of the adapter.
        self._hooks = [
            backbone.module.register_forward_pre_hook(self._begin_forward),
            backbone.module.register_forward_hook(self._end_forward, always_call=True),
        ]

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.parametrisation.named_parameters())

    def contract(self) -> Contracted:
        """Contracts the factors of all sites, in the precision of the parameters and outside autocast."""
        with torch.autocast(next(self.backbone.module.parameters()).device.type, enabled=False):
            contracted = self.parametrisation.contract()
            return contracted if self._fit is None else self._fit(contracted, self.parametrisation)

    def factors(self) -> dict[Site, tuple[Tensor, Tensor]]:
        contracted = self.contract()
        method = self.parametrisation
        return {
            site: pair(
                contracted.downs[method.down_of[site]],
                contracted.middles.get(site),
                up,
                self.backbone.geometry.shape(site.projection),
                method.input_slices.get(site, 1),
                method.output_slices.get(site, 1),
            )
            for site, up in contracted.ups.items()
        }

    def biases(self) -> dict[Site, Tensor]:
        return self.contract().biases

    def core(self) -> list[nn.Parameter]:
        from tltorch import TuckerTensor

        tensors = (module for module in self.parametrisation.modules() if isinstance(module, TuckerTensor))
        return [tensor.core for tensor in tensors]

    def frozen(self) -> dict[str, Tensor]:
        return self.parametrisation.frozen()

    def kept(self) -> dict[str, Tensor]:
        return self.parametrisation.kept()

    def remake(self) -> None:
        self.parametrisation.remake()

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

    @contextmanager
    def part(self, start: int, stop: int, total: int) -> Iterator[None]:
        if self.masks is None or stop - start == total:
            yield
            return
        self.masks.part = BatchPart(start, stop, total)
        try:
            yield
        finally:
            self.masks.part = None

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._drop()
        super().detach()

    def recontract(self) -> None:
        """Contracts the factors again, for a layer that gradient checkpointing recomputes.

        Non-reentrant checkpointing needs only the values of the new factors, since gradients flow through the
        factors of the first run. Reentrant checkpointing would send gradients to the new factors, where the
        gradients would be lost. So a gradient that arrives there raises RuntimeError. Also raises
        RuntimeError outside a backward pass: a layer was called without its backbone's forward.
        """
        if not in_backward():
            raise RuntimeError("an adapted layer was called outside the forward of its backbone's module")
        # Own saved-tensor hooks, so that the checkpoint does not count these tensors as the layer's.
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved):
            contracted = self.contract()
        self._distribute(contracted.each(_value))
        # Not by a hook on a tensor: other layers may still be recomputed when its gradient arrives.
        at_end_of_backward(self._drop)

    def _begin_forward(self, *_: object) -> None:
        if self.masks is not None:
            self.masks.begin()
        self._refresh()

    def _end_forward(self, *_: object) -> None:
        if self.masks is not None:
            self.masks.end()
        self._drop()

    def _refresh(self) -> None:
        if not self._holding and not self.merged:
            self._distribute(self.contract())

    def _distribute(self, contracted: Contracted) -> None:
        joined: dict[tuple[int, ...], Tensor] = {}
        for shared in self._inputs:
            if shared.indices not in joined:
                parts = [contracted.downs[i] for i in shared.indices]
                joined[shared.indices] = parts[0] if len(parts) == 1 else torch.cat(parts)
            shared.down = joined[shared.indices]
            shared.widths = [len(contracted.downs[i]) for i in shared.indices]
        for site, linear in self._linears.items():
            middle, bias = contracted.middles.get(site), contracted.biases.get(site)
            linear.receive(contracted.ups[site], middle, bias)

    def _drop(self) -> None:
        """Releases activations, and factors too unless `hold` is active."""
        for shared in self._inputs:
            shared.forget()
            if not self._holding:
                shared.down = None
        if not self._holding:
            for linear in self._linears.values():
                linear.forget()


def _by_input(sites: dict[Site, int]) -> list[list[Site]]:
    """Groups sites that read the same activation."""
    groups: dict[tuple[int, object], list[Site]] = {}
    for site in sites:
        sharing = (group for group in (SHARED_INPUT, GATED_INPUT) if site.projection in group)
        source = next(sharing, site.projection)
        groups.setdefault((site.layer, source), []).append(site)
    return list(groups.values())


def _value(factor: Tensor) -> Tensor:
    """Returns the factor's value as a leaf of autograd.

    The leaf requires a gradient if the factor does, so that a recomputed layer saves the same tensors as in
    its first run.
    """
    value = factor.detach()
    if factor.requires_grad:
        value.requires_grad_().register_hook(_refuse_gradient)
    return value


def _refuse_gradient(_: Tensor) -> None:
    raise RuntimeError(
        "reentrant gradient checkpointing would lose the adapter's gradients: use_reentrant=False"
    )
