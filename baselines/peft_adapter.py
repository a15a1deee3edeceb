"""Adapters that the `peft` package builds, behind our interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from methods.adapter import Adapter
from methods.backbone import Backbone, Site
from methods.errors import NotLowRank

NAME = "default"


class PeftAdapter(Adapter):
    """Injects by peft, then treats the injected layers as ours.

    Merging is ours too: peft subtracts what it added, which does not restore the weights bit for bit.
    """

    def __init__(
        self,
        backbone: Backbone,
        projections: Sequence[str],
        config: Callable[[list[str]], Any],
        generator: torch.Generator,
    ) -> None:
        from peft import inject_adapter_in_model

        sites = [Site(layer, name) for layer in range(backbone.geometry.layers) for name in projections]
        super().__init__(backbone, sites)
        frozen = {name for name, _ in backbone.module.named_parameters()}
        # peft starts its layers from the global generator: lend it ours, then give it back untouched.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            inject_adapter_in_model(config([backbone.path(site) for site in sites]), backbone.module, NAME)
        for site in sites:
            self.install(site, backbone.module.get_submodule(backbone.path(site)))
        # Injection freezes everything that is not peft's, the head included.
        for parameter in backbone.head.parameters():
            parameter.requires_grad_(True)
        self._parameters = {
            name: parameter
            for name, parameter in backbone.module.named_parameters()
            if parameter.requires_grad and name not in frozen and "base_layer" not in name
        }

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._parameters)

    def delta(self, site: Site) -> Tensor:
        layer: Any = self._adapted[site]
        return layer.get_delta_weight(NAME)

    def factors(self) -> dict[Site, tuple[Tensor, Tensor]]:
        return {site: _lora_factors(layer) for site, layer in self._adapted.items()}

    def detach(self) -> None:
        super().detach()
        if hasattr(self.backbone.module, "peft_config"):
            del self.backbone.module.peft_config


def _lora_factors(layer: Any) -> tuple[Tensor, Tensor]:
    if not hasattr(layer, "lora_A") or layer.use_dora.get(NAME):
        raise NotLowRank(f"{type(layer).__name__} of peft has no low-rank factors")
    return layer.lora_A[NAME].weight, layer.lora_B[NAME].weight * layer.scaling[NAME]
