"""Lily (arXiv 2407.09946), as implemented by peft: layers share A, and a router mixes several B by batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from tensorbench.baselines.peft_adapter import NAME, PeftAdapter
from tensorbench.baselines.peft_method import AdapterClass, PeftMethod
from tensorbench.methods.backbone import Geometry, Site
from tensorbench.methods.errors import NotLowRank, UserError

#: The fields of peft's configuration that control sharing, each with its smallest value, also the default.
SHARED_FIELDS = {"stride_A": 1, "num_B": 2}

#: Why no weight is equivalent to the update, and why an example's outputs depend on its batch.
BY_BATCH = "Lily's router averages over all tokens of a batch, so that an output depends on its whole batch"


class LilyAdapter(PeftAdapter):
    """The adapter y += scaling · Σ pₖ·Bₖ·A·x, with p = softmax(router·A·x) averaged over the batch's tokens.

    peft decides by the layers' names which layers share A and B. Here, sharing follows the backbone's sites,
    so that it is the same for all kinds of backbones.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        leaders: dict[str, nn.Module] = {}
        firsts: dict[str, nn.Module] = {}
        for site in self.bases:
            layer: Any = self._adapted[site]
            first = firsts.setdefault(site.projection, layer)
            if site.layer % layer.stride_A[NAME] == 0:
                leaders[site.projection] = layer
            layer.lily_A[NAME] = leaders[site.projection].lily_A[NAME]  # type: ignore[index]
            layer.lily_B[NAME] = first.lily_B[NAME]  # type: ignore[index]
        self._parameters = self._trained()

    def delta(self, site: Site) -> Tensor:
        """Raises NotLowRank, since the update differs between batches."""
        raise NotLowRank(BY_BATCH)

    def merge(self) -> None:
        """Raises UserError, since the update differs between batches."""
        raise UserError(f"peft's LILY cannot be merged: {BY_BATCH}")


class Lily(PeftMethod):
    """Lily, in which neighbouring layers share one matrix A, and all layers share several matrices B.

    `config.stride_A` layers share one A, and there are `config.num_B` matrices B. Each projection has its
    own A and B.
    """

    adapter_class: ClassVar[AdapterClass] = LilyAdapter
    whole_numbers: ClassVar[Mapping[str, int]] = SHARED_FIELDS
    title: ClassVar[str] = "Lily"
    depends_on_batch: ClassVar[str] = BY_BATCH
    not_mergeable: ClassVar[str] = BY_BATCH

    type: Literal["LILY"]

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts ⌈L / stride_A⌉·r·in + num_B·r·out + L·r·num_B, summed over the projections, for L layers."""
        stride, number = (self.config.get(name, least) for name, least in SHARED_FIELDS.items())
        total = 0
        for projection in geometry.having(self.projections):
            out, in_ = geometry.shape(projection)
            blocks = math.ceil(geometry.layers / stride)
            total += rank * (blocks * in_ + number * out + geometry.layers * number)
        return total
