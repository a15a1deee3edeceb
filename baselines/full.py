"""Full fine-tuning, without an adapter: the ceiling of every comparison."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from tensorbench.methods.adapter import Adapter
from tensorbench.methods.backbone import Backbone, Geometry, Site
from tensorbench.methods.errors import NotLowRank, UserError
from tensorbench.methods.sizes import Unsized


class FullFineTuning(Unsized):
    """Trains every parameter of the encoder.

    A language model's output layer is trained only if it is tied to the input embeddings. A separate output
    layer stays frozen, as under every other method: it lies outside the encoder and no count includes it.
    """

    name: ClassVar[str] = "full"
    title: ClassVar[str] = "full fine-tuning"
    projections: ClassVar[tuple[str, ...]] = ()
    trains_weights: ClassVar[bool] = True
    needs_dense: ClassVar[str] = "it trains the backbone's own weights"
    not_low_rank: ClassVar[str] = "full fine-tuning has no low-rank factors"

    def count(self, geometry: Geometry) -> int:
        """Returns the number of all parameters of the encoder, embeddings and norms included.

        Raises UserError if the geometry does not state this number.
        """
        if geometry.encoder is None:
            raise UserError(f"full fine-tuning: the encoder's parameters are not known for {geometry}")
        return geometry.encoder

    def put(self, backbone: Backbone, generator: torch.Generator) -> _Unfrozen:
        return _Unfrozen(backbone)


class _Unfrozen(Adapter):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone, backbone.geometry.sites(backbone.projections))
        encoder = {id(parameter) for parameter in backbone.encoder.parameters()}
        self._parameters = {
            name: parameter
            for name, parameter in backbone.module.named_parameters()
            if id(parameter) in encoder
        }
        self._pristine = {name: p.detach().clone() for name, p in self._parameters.items()}
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._parameters)

    def factors(self) -> dict[Site, tuple[Tensor, Tensor]]:
        raise NotLowRank(FullFineTuning.not_low_rank)

    def delta(self, site: Site) -> Tensor:
        weight = f"{self.backbone.path(site)}.weight"
        return (self._parameters[weight] - self._pristine[weight]).detach()

    def deltas(self) -> Iterator[tuple[Site, Tensor]]:
        return ((site, self.delta(site)) for site in self.bases)

    def merge(self) -> None:
        """Does nothing, since training changes the backbone's own weights."""

    @torch.no_grad()
    def detach(self) -> None:
        for name, pristine in self._pristine.items():
            self._parameters[name].copy_(pristine)
            self._parameters[name].grad = None
        self._pristine = {}
        super().detach()
