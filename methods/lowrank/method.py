"""Base classes of methods with low-rank updates: plain, stacked over sites, and with cut ranks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from methods.adapter import Adapter
from methods.backbone import SHARED_HEADS, Backbone, Geometry, Site
from methods.base import Method
from methods.errors import UserError, shown
from methods.lowrank.adapter import Fit, LowRankAdapter
from methods.lowrank.contracted import Contracted, Parametrisation
from methods.lowrank.cutting import Cuts, Cuttable, Cutting, Ranks
from methods.lowrank.linear import DropoutAt
from methods.lowrank.masks import Masks
from methods.validation import Later, Scale

#: The update of a key or value head that several query heads share. `tied`: the mean of their slices, which
#: is the nearest shared update to that of full attention.
#: `cut`: the first kv_heads · head_size rows, as VeRA in peft takes them.
SharedHeads = Literal["tied", "cut"]


class LowRankMethod(Method):
    """A method whose update is `up @ down` at every site."""

    #: Factor of the update. Not divided by any rank unless the method says so.
    scale: Scale = 1.0
    #: Dropout probability, at `dropout_at`.
    dropout: float = Field(0.0, ge=0.0, lt=1.0)

    dropout_at: ClassVar[DropoutAt] = "input"

    @property
    def revisions(self) -> int:
        """Counts dropout as changed once, because dropout first drew from the backbone's stream."""
        return super().revisions + (self.dropout > 0)

    @abstractmethod
    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        """Builds the parameters at their start. They contract to zero unless `nonzero_start` says why not."""

    def put(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        parametrisation = self.parametrise(backbone.geometry, generator)
        fit = self.fitting(backbone.geometry)
        return LowRankAdapter(backbone, parametrisation, self.masks(generator), self.dropout_at, fit)

    def fitting(self, geometry: Geometry) -> Fit | None:
        """The function that fits contracted pairs to the sites' shapes. None if the shapes match already."""
        return None

    def masks(self, generator: torch.Generator) -> Masks | None:
        """Returns the adapter's dropout, or None if the method drops nothing.

        The dropout's seed is drawn after the adapter's start, which therefore does not depend on dropout.
        """
        if not self.dropout:
            return None
        return Masks(self.dropout, int(torch.randint(2**63 - 1, (), generator=generator)))


class StackedMethod(LowRankMethod):
    """A method that stacks the matrices of several sites in tensors, as slices of one shape.

    `parametrise` builds the tensor of `methods.slices.Slices` and contracts it to pairs. A weight with fewer
    rows than its up factor takes the first rows. Shared heads follow `shared_heads`.
    """

    shared_heads: Annotated[SharedHeads, Later()] = "tied"

    def fitting(self, geometry: Geometry) -> Fitting:
        return Fitting(geometry, self.shared_heads)


@dataclass(frozen=True)
class Fitting:
    """Converts the up factors of the full-attention model to the shapes of a backbone's sites."""

    geometry: Geometry
    shared_heads: SharedHeads

    def __call__(self, contracted: Contracted, method: Parametrisation) -> Contracted:
        """Cuts each up factor to the rows of its site, or of one slice if the site's output is sliced."""
        rows = {
            site: self.geometry.hidden
            if site in method.output_slices
            else self.geometry.shape(site.projection)[0]
            for site in contracted.ups
        }
        wide = {site: up for site, up in contracted.ups.items() if len(up) > rows[site]}
        if not wide:
            return contracted
        shared = {site: up for site, up in wide.items() if site.projection in SHARED_HEADS}
        means = self._means(shared) if self.shared_heads == "tied" else {}
        fitted = {site: up[: rows[site]] for site, up in wide.items() if site not in means}
        return replace(contracted, ups=contracted.ups | fitted | means)

    def _means(self, ups: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
        """Averages up factors over the query heads that share a head, once for each distinct up factor."""
        geometry = self.geometry
        different = {id(up): up[: geometry.attention_width] for up in ups.values()}
        if not different:
            return {}
        heads = torch.cat(list(different.values()), 1).unflatten(
            0, (geometry.kv_heads, geometry.heads // geometry.kv_heads, geometry.head_size)
        )
        means = heads.mean(1).flatten(0, 1).split([up.shape[1] for up in different.values()], 1)
        by_up = dict(zip(different, means, strict=True))
        return {site: by_up[id(up)] for site, up in ups.items()}


class CutMethod(StackedMethod):
    """A tensor method with several ranks, which training may cut down to the method's own ranks."""

    #: Training begins with larger ranks and drops the smallest singular values until there are no more
    #: parameters than with the method's own ranks. None: ranks stay.
    cuts: Annotated[Cuts | None, Later()] = None

    @property
    @abstractmethod
    def cut_names(self) -> tuple[str, ...]:
        """The mode or bond of each rank of a tensor."""

    @property
    @abstractmethod
    def budget_ranks(self) -> Ranks:
        """The ranks that define the final number of parameters, one for each of `cut_names`."""

    @abstractmethod
    def cut_limits(self, geometry: Geometry) -> Ranks:
        """The largest useful rank for each of `cut_names`."""

    @abstractmethod
    def count_with(self, geometry: Geometry, ranks: Ranks) -> int:
        """Counts the adapter's parameters with a rank for each of `cut_names`."""

    def start_ranks(self, geometry: Geometry) -> Ranks:
        """The ranks of a fresh adapter. Raises UserError if `cuts` is set and there is nothing to cut."""
        if self.cuts is None:
            return self.budget_ranks
        counted = partial(self.count_with, geometry)
        return self.cuts.start_ranks(self.budget_ranks, self.cut_limits(geometry), counted, self.label)

    def peak_count(self, geometry: Geometry) -> int:
        return (
            self.count(geometry)
            if self.cuts is None
            else self.count_with(geometry, self.start_ranks(geometry))
        )

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
        """Builds the cuts of an adapter's tensor. None if its ranks stay."""
        if self.cuts is None:
            return None
        counted = partial(self.count_with, geometry)
        return Cutting(self.cuts, tensor, self.cut_names, counted, self.count(geometry))
