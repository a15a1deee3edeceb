"""Base classes of methods with low-rank updates, with stacked updates, and with ranks that are cut."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tensorbench.methods.adapter import Adapter
from tensorbench.methods.backbone import SHARED_HEADS, Backbone, Geometry, Site
from tensorbench.methods.base import Method
from tensorbench.methods.errors import UserError, shown
from tensorbench.methods.lowrank.adapter import Fit, LowRankAdapter
from tensorbench.methods.lowrank.contracted import Contracted, Parametrisation
from tensorbench.methods.lowrank.cutting import Cuts, Cuttable, Cutting, Ranks
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


class CutMethod(StackedMethod):
    """A method whose tensors have several ranks, which training may cut.

    Without `cuts`, an adapter keeps the method's own ranks. With `cuts`, training starts with larger ranks.
    """

    #: The schedule of cuts. Training starts with larger ranks and drops the smallest singular values, until
    #: there are no more parameters than with the method's own ranks. None: no cuts. torch's
    #: DistributedDataParallel expects the old shapes after a cut, and has to be put around the model again.
    cuts: Cuts | None = None

    @property
    def cut_names(self) -> tuple[str, ...]:
        """The names of a tensor's ranks: the mode or bond of each. By default, they are `rank_names`."""
        return self.rank_names

    @property
    @abstractmethod
    def budget_ranks(self) -> Ranks:
        """The method's own ranks, one for each of `cut_names`.

        After all cuts, the adapter has at most as many parameters as with these ranks.
        """

    @abstractmethod
    def cut_limits(self, geometry: Geometry) -> Ranks:
        """Returns the largest useful rank for each of `cut_names`."""

    @abstractmethod
    def count_with(self, geometry: Geometry, ranks: Ranks) -> int:
        """Counts the adapter's parameters with these ranks, one for each of `cut_names`."""

    def start_ranks(self, geometry: Geometry) -> Ranks:
        """Returns the ranks of a fresh adapter, one for each of `cut_names`.

        Raises UserError if `cuts` is set but no rank can be larger than the method's own.
        """
        if self.cuts is None:
            return self.budget_ranks
        counted = partial(self.count_with, geometry)
        return self.cuts.start_ranks(self.budget_ranks, self.cut_limits(geometry), counted, self.label)

    def peak_count(self, geometry: Geometry) -> int:
        cuts = self.cuts is not None
        return self.count_with(geometry, self.start_ranks(geometry)) if cuts else self.count(geometry)

    def count_left(self, geometry: Geometry, ranks: Mapping[str, Sequence[int]]) -> int:
        if self.cuts is None:
            return super().count_left(geometry, ranks)
        if list(ranks) != list(self.cut_names) or not all(len(left) == 1 for left in ranks.values()):
            raise UserError(
                f"{self.label}: final ranks are one for each of {', '.join(self.cut_names)} "
                f"(got {shown(dict(ranks))})"
            )
        return self.count_with(geometry, tuple(rank for (rank,) in ranks.values()))

    def check(self, geometry: Geometry, projections: tuple[str, ...]) -> None:
        super().check(geometry, projections)
        if self.cuts is not None:
            self.start_ranks(geometry)

    def check_steps(self, steps: int) -> None:
        if self.cuts is not None:
            self.cuts.steps(steps)

    @property
    def varying_count(self) -> str:  # type: ignore[override]
        reason = "training chooses the ranks, whose parameters are at most those of the budget"
        return reason if self.cuts else ""

    def cutting(self, geometry: Geometry, tensor: Cuttable) -> Cutting | None:
        """Builds the object that cuts the ranks of an adapter's tensors. None without `cuts`."""
        if self.cuts is None:
            return None
        counted = partial(self.count_with, geometry)
        return Cutting(self.cuts, tensor, self.cut_names, counted, self.count(geometry))
