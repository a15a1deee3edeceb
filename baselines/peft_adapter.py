"""Adapters built by the package peft, with the interface of `Adapter`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tensorbench.methods.adapter import Adapter
from tensorbench.methods.backbone import Backbone, Site
from tensorbench.methods.errors import NotLowRank, UserError
from tensorbench.methods.quantised import QuantisedLinear

#: The name of our adapter in peft's layers, which can hold several adapters.
NAME = "default"


def inject(module: nn.Module, config: Any) -> nn.Module:
    """Puts peft's layers into `module`, in place, and returns peft's tuner.

    Parameters that layers share belong to the tuner.
    """
    from peft import PEFT_TYPE_TO_TUNER_MAPPING

    return PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](module, config, NAME)


class PeftAdapter(Adapter):
    """An adapter made of peft's layers. Merging, saving and freezing are inherited from `Adapter`.

    peft's own unmerging is not used: it subtracts the update, which does not restore the weights bit for bit.
    `config` is a function from the adapted sites, by dotted path, to peft's configuration. Raises UserError
    if peft's start changes the backbone's own weights.
    """

    def __init__(
        self,
        backbone: Backbone,
        projections: Sequence[str],
        config: Callable[[dict[str, Site]], Any],
        generator: torch.Generator,
    ) -> None:
        self.config = config
        sites = backbone.geometry.sites(projections)
        super().__init__(backbone, sites)
        # Copies, since some starts change the weights themselves (PiSSA, OLoRA). A quantised layer makes a
        # new dense weight at each access, which a start cannot change.
        before = {
            site: (base.weight.data, base.weight.data.clone())
            for site, base in self.bases.items()
            if not isinstance(base, QuantisedLinear)
        }
        # peft draws from the global generator: give it our generator's state, then restore the global one.
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
                self.tuner = inject(backbone.module, config({backbone.path(site): site for site in sites}))
        except BaseException:
            self._adapted = dict(self.bases)
            self._restore(before)
            raise
        for site in sites:
            layer = backbone.module.get_submodule(backbone.path(site))
            # peft's layers are in training mode, whatever the mode of the backbone.
            self.install(site, layer.train(self.bases[site].training))
        # Injection freezes everything else, including the head.
        self._train_head()
        # In lower precision than float32, small steps would be lost.
        own = {id(base) for base in self.bases.values()}
        for adapted in self._adapted.values():
            for part in adapted.modules():
                if id(part) not in own:
                    for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
                        if tensor.is_floating_point():
                            tensor.data = tensor.data.to(torch.promote_types(tensor.dtype, torch.float32))
        self._parameters = self._trained()
        if not all(torch.equal(self.bases[site].weight, copy) for site, (_, copy) in before.items()):
            self._restore(before)
            raise UserError("peft: this start changes the backbone's own weights, which stay frozen here")

    def _trained(self) -> dict[str, nn.Parameter]:
        head = {id(parameter) for parameter in self.backbone.head.parameters()}
        return {
            name: parameter
            for name, parameter in self.tuner.named_parameters()
            if parameter.requires_grad and id(parameter) not in head
        }

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._parameters)

    @torch.no_grad()
    def delta(self, site: Site) -> Tensor:
        """Computes the update by applying the adapted layer to the identity matrix.

        This is exact if the layer is linear in its input. Otherwise raises UserError, since no weight is
        equivalent to the layer.
        """
        weight, _ = self._probe(site)
        return weight - self.bases[site].weight

    def deltas(self) -> Iterator[tuple[Site, Tensor]]:
        return ((site, self.delta(site)) for site in self.bases)

    @torch.no_grad()
    def biases(self) -> dict[Site, Tensor]:
        """Returns the nonzero updates of biases. IA3, for example, also scales biases."""
        moved = {}
        for site, base in self.bases.items():
            _, bias = self._probe(site, with_weight=False)
            update = bias if base.bias is None else bias - base.bias
            if update.any():
                moved[site] = update
        return moved

    def factors(self) -> dict[Site, tuple[Tensor, Tensor]]:
        factors = {}
        for site, adapted in self._adapted.items():
            layer: Any = adapted
            # Variants of LoRA such as DoRA have LoRA's parameters but another update.
            module = type(layer).__module__
            if module != "peft.tuners.lora.layer" or NAME in layer.lora_variant:
                raise NotLowRank(f"peft's {module.split('.')[-2]} has no low-rank factors")
            if layer.lora_B[NAME].bias is not None:
                raise NotLowRank(
                    "a LoRA with lora_bias also changes the layer's bias, which factors cannot express"
                )
            factors[site] = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight * layer.scaling[NAME]
        return factors

    def detach(self) -> None:
        if not self._detached and hasattr(self.backbone.module, "peft_config"):
            del self.backbone.module.peft_config
        super().detach()

    def _restore(self, before: dict[Site, tuple[Tensor, Tensor]]) -> None:
        """Restores the backbone's weights, then detaches the adapter.

        `before` maps each site to its weight and a copy of the weight's values.
        """
        for site, (weight, copy) in before.items():
            self.bases[site].weight.data = weight.copy_(copy)
        self.detach()

    def _probe(self, site: Site, *, with_weight: bool = True) -> tuple[Tensor, Tensor]:
        """Measures the effective weight (out, in) and bias (out,) of a site's adapted layer.

        Raises UserError if the layer is not linear. If `with_weight` is false, measures the bias only: the
        returned weight is the base layer's, and linearity is not checked.
        """
        layer, base = self._adapted[site], self.bases[site]
        training = layer.training
        layer.eval()
        # In lower precision than float32, rounding would erase most updates.
        stored = {name: parameter.data for name, parameter in base.named_parameters()}
        for parameter in base.parameters():
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        weight: Tensor = base.weight.data
        try:
            inputs = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
            bias = layer(inputs[:1] * 0)[0]
            if with_weight:
                weight = (layer(inputs) - bias).T
                doubled = layer(inputs[:1] * 2)[0]
                if not torch.allclose(doubled, 2 * weight[:, 0] + bias, rtol=1e-3, atol=1e-5):
                    raise UserError(
                        f"peft's {type(layer).__name__} at {site} is not linear, so it cannot be merged"
                    )
        finally:
            layer.train(training)
            for name, parameter in base.named_parameters():
                parameter.data = stored[name]
        return weight, bias
