"""Adapters that add the result of a module to the output of a layer, where no low-rank pair is possible."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tensorbench.methods.adapter import AdaptedLayer, Adapter, PartlyFrozen
from tensorbench.methods.backbone import Backbone, Site
from tensorbench.methods.base import Method
from tensorbench.methods.errors import NotLowRank, UserError


class Addition(PartlyFrozen):
    """The base class of modules whose result is added to the output of a site's layer."""

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the addition (…, out), given the layer's input x (…, in) and its output y (…, out)."""


class AddedAdapter(Adapter):
    """An adapter that computes `base(x) + addition(x, base(x))` at every site.

    `make` builds the addition of a site from the site's frozen layer. `factors` raises NotLowRank with the
    reason in `Method.not_low_rank`. If `Method.not_mergeable` gives a reason, `delta` and `merge` raise too.
    """

    def __init__(self, backbone: Backbone, method: Method, make: Callable[[nn.Linear], Addition]) -> None:
        super().__init__(backbone, backbone.geometry.sites(method.projections))
        self.method = method
        self.additions: dict[Site, Addition] = {}
        for site, base in self.bases.items():
            # At least float32: in lower precision, rounding would swallow small optimizer steps.
            dtype = torch.promote_types(base.weight.dtype, torch.float32)
            self.additions[site] = make(base).to(base.weight.device, dtype)
            self.install(site, _Added(base, self.additions[site]))

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {
            f"{site}.{name}": parameter
            for site, addition in self.additions.items()
            for name, parameter in addition.named_parameters()
        }

    def frozen(self) -> dict[str, Tensor]:
        return self._of_all(PartlyFrozen.frozen)

    def kept(self) -> dict[str, Tensor]:
        return self._of_all(PartlyFrozen.kept)

    def remake(self) -> None:
        for addition in self.additions.values():
            addition.remake()

    def factors(self) -> dict[Site, tuple[Tensor, Tensor]]:
        raise NotLowRank(self.method.not_low_rank)

    def delta(self, site: Site) -> Tensor:
        """Computes the update by applying the addition to unit vectors.

        Raises NotLowRank if the method cannot be merged, since then no weight is equivalent to the addition.
        """
        if self.method.not_mergeable:
            raise NotLowRank(self.method.not_mergeable)
        weight = self.bases[site].weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        units = torch.eye(weight.shape[1], dtype=dtype, device=weight.device)
        return self.additions[site](units, units).T

    def deltas(self) -> Iterator[tuple[Site, Tensor]]:
        return ((site, self.delta(site)) for site in self.bases)

    def merge(self) -> None:
        """Merges as `Adapter.merge` does. Raises UserError if no weight is equivalent to the addition."""
        if self.method.not_mergeable:
            raise UserError(f"{self.method.label} cannot be merged: {self.method.not_mergeable}")
        super().merge()

    def _of_all(self, get: Callable[[PartlyFrozen], dict[str, Tensor]]) -> dict[str, Tensor]:
        return {
            f"{site}.{name}": tensor
            for site, addition in self.additions.items()
            for name, tensor in get(addition).items()
        }


class _Added(AdaptedLayer):
    def __init__(self, base: nn.Linear, addition: Addition) -> None:
        super().__init__(base)
        self.addition = addition.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y + self.addition(x, y)
