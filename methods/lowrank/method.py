"""Base classes of methods with low-rank updates, and with stacked updates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tensorbench.methods.adapter import Adapter
from tensorbench.methods.backbone import SHARED_HEADS, Backbone, Geometry, Site
from tensorbench.methods.base import Method
from tensorbench.methods.lowrank.adapter import Fit, LowRankAdapter
from tensorbench.methods.lowrank.contracted import Contracted, Parametrisation
from tensorbench.methods.lowrank.linear import DropoutAt
from tensorbench.methods.lowrank.masks import Masks
from tensorbench.methods.slices import CUT_INPUTS, CUT_OUTPUTS, Slices, cut_sites, turned
from tensorbench.methods.validation import Scale

#: How key and value heads get their updates if several query heads share one. A method first computes updates
#: for full attention, where every query head has a key head and a value head of its own. `tied`: each shared
#: head gets the mean of the updates for its query heads, which is the nearest shared update. `cut`: together,
#: the shared heads get the first kv_heads · head_size rows of these updates, as in peft's VeRA.
SharedHeads = Literal["tied", "cut"]


class LowRankMethod(Method):
    """A method whose update is `up @ down` at every site."""

    #: The factor of the update. It is not divided by a rank, unless the method says so.
    scale: Scale = 1.0
    #: The probability of dropout, which is applied at `dropout_at`.
    dropout: float = Field(0.0, ge=0.0, lt=1.0)

    dropout_at: ClassVar[DropoutAt] = "input"

    @abstractmethod
    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        """Builds the parameters with their initial values.

        With these values the update is zero, unless `nonzero_start` says why not.
        """

    def put(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        parametrisation = self.parametrise(backbone.geometry, generator)
        fit = self.fitting(backbone.geometry)
        return LowRankAdapter(backbone, parametrisation, self.masks(generator), self.dropout_at, fit)

    def fitting(self, geometry: Geometry) -> Fit | None:
        """Returns a function that converts contracted pairs to the shapes of the backbone's sites.

        None if the pairs have these shapes already.
        """
        return None

    def masks(self, generator: torch.Generator) -> Masks | None:
        """Returns the adapter's dropout, or None if the method drops nothing.

        The seed of the dropout is drawn after the adapter's initial values, so that these do not depend on
        dropout.
        """
        if not self.dropout:
            return None
        return Masks(self.dropout, int(torch.randint(2**63 - 1, (), generator=generator)))


class StackedMethod(LowRankMethod):
    """A method that stacks the updates of several sites in tensors, as slices of one shape.

    The slices are those of the model with full attention (see `tensorbench.methods.slices`). If a weight has
    fewer rows than its up factor, only the factor's first rows are used. If query heads share the heads of
    key and value, `shared_heads` chooses how key and value use their up factors instead.
    """

    shared_heads: SharedHeads = "tied"

    def slices(self, geometry: Geometry) -> Slices:
        """Returns the slices of one layer, in the order in which the method stacks them."""
        return Slices(self.projections, geometry)

    def fitting(self, geometry: Geometry) -> Fit:
        return partial(_fitted, geometry, self.shared_heads == "tied")


def _fitted(geometry: Geometry, tied: bool, contracted: Contracted, method: Parametrisation) -> Contracted:
    """Reduces each up factor to the number of rows of its weight or, for sliced outputs, of a slice.

    If `tied`, the up factors of shared key and value heads become means. All other up factors are truncated.
    """
    rows = {
        site: geometry.hidden if site in method.output_slices else geometry.shape(site.projection)[0]
        for site in contracted.ups
    }
    wide = {site: up for site, up in contracted.ups.items() if len(up) > rows[site]}
    if not wide:
        return contracted
    shared = {site: up for site, up in wide.items() if tied and site.projection in SHARED_HEADS}
    means = _means(shared, geometry)
    fitted = {site: up[: rows[site]] for site, up in wide.items() if site not in means}
    return replace(contracted, ups=contracted.ups | fitted | means)


def _means(ups: Mapping[Site, Tensor], geometry: Geometry) -> dict[Site, Tensor]:
    """Averages the up factors of key and value over the query heads that share a key or value head.

    Sites may share an up factor, so each distinct one is averaged once.
    """
    different = {id(up): up[: geometry.attention_width] for up in ups.values()}
    if not different:
        return {}
    heads = torch.cat(list(different.values()), 1).unflatten(
        0, (geometry.kv_heads, geometry.heads // geometry.kv_heads, geometry.head_size)
    )
    means = heads.mean(1).flatten(0, 1).split([up.shape[1] for up in different.values()], 1)
    by_up = dict(zip(different, means, strict=True))
    return {site: by_up[id(up)] for site, up in ups.items()}


class SharedEnds(Parametrisation):
    """A parametrisation by one tensor, whose input factor and output factor are shared by all sites.

    The tensor's input factor is the first of `Contracted.downs`. If `output` uses its slice transposed, the
    tensor's output factor is the second, and it is the down factor of `output`.
    """

    def __init__(self, method: StackedMethod, geometry: Geometry) -> None:
        super().__init__()
        self.scale, self.layers, self.slices = method.scale, geometry.layers, method.slices(geometry)
        #: The attention's width if `output` uses its slice transposed, otherwise 0.
        self.turned = geometry.attention_width if turned(geometry) else 0
        sites = geometry.sites(method.projections)
        self.down_of = {site: int(bool(self.turned) and site.projection == "output") for site in sites}
        self.input_slices = cut_sites(sites, geometry, CUT_INPUTS)
        self.output_slices = cut_sites(sites, geometry, CUT_OUTPUTS)
