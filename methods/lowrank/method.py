"""Base classes of methods with low-rank updates: plain, stacked over sites, and with ranks that are cut."""

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

#: What a key or value head takes that several query heads share. `tied`: the mean of the slices of these
#: query heads, which of all updates that keep their keys equal is the nearest to that of full attention.
#: `cut`: the first kv_heads · head_size rows, as VeRA in peft takes them.
SharedHeads = Literal["tied", "cut"]


class LowRankMethod(Method):
    """A method whose update of every site is `up @ down`."""

    #: Multiplies the update; not divided by any rank unless the method says so.
    scale: Scale = 1.0
    #: Dropout probability, at `dropout_at`.
    dropout: float = Field(0.0, ge=0.0, lt=1.0)

    dropout_at: ClassVar[DropoutAt] = "input"

    @property
    def revisions(self) -> int:
        """Dropout drew from the backbone's stream before it had one of its own."""
        return super().revisions + (self.dropout > 0)

    @abstractmethod
    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        """Builds and starts the parameters. They contract to zero, unless `nonzero_start` says why not."""

    def put(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        parametrisation = self.parametrise(backbone.geometry, generator)
        fit = self.fitting(backbone.geometry)
        return LowRankAdapter(backbone, parametrisation, self.masks(generator), self.dropout_at, fit)

    def fitting(self, geometry: Geometry) -> Fit | None:
        """What makes the contracted pairs those of the backbone's sites. None: they are."""
        return None

    def masks(self, generator: torch.Generator) -> Masks | None:
        """The adapter's dropout, None without any. It draws after the start, which is the same with both."""
        if not self.dropout:
            return None
        return Masks(self.dropout, int(torch.randint(2**63 - 1, (), generator=generator)))


class StackedMethod(LowRankMethod):
    """A method that stacks the matrices of several sites, and so wants them to be of one shape.

    `parametrise` builds the tensor of `methods.slices.Slices` and contracts to its pairs. An up may have more
    rows than the site's weight, which then takes the first; shared heads take what `shared_heads` says.
    """

    shared_heads: Annotated[SharedHeads, Later()] = "tied"

    def fitting(self, geometry: Geometry) -> Fitting:
        return Fitting(geometry, self.shared_heads)


@dataclass(frozen=True)
class Fitting:
    """From the ups of the full-attention model to those of a backbone's sites."""

    geometry: Geometry
    shared_heads: SharedHeads

    def __call__(self, contracted: Contracted, method: Parametrisation) -> Contracted:
        """The same pairs, each up with the rows of its site: of one slice where its output is cut."""
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
        """The mean over the query heads that share a head, of all sites at once; an up of several, once."""
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
    """A method of tensors with several ranks. Its own ranks say how many parameters are left at the end."""

    #: A training begins with larger ranks, and cuts those with the least singular values until it has no more
    #: parameters than the method's ranks make. None: the ranks stay what they are.
    cuts: Annotated[Cuts | None, Later()] = None

    @property
    @abstractmethod
    def cut_names(self) -> tuple[str, ...]:
        """What the ranks of a tensor belong to."""

    @property
    @abstractmethod
    def budget_ranks(self) -> Ranks:
        """For each of `cut_names` the rank with which there are as many parameters as at the end."""

    @abstractmethod
    def cut_limits(self, geometry: Geometry) -> Ranks:
        """For each of `cut_names` the rank above which nothing is gained."""

    @abstractmethod
    def count_with(self, geometry: Geometry, ranks: Ranks) -> int:
        """The adapter's parameters with a rank for each of `cut_names`."""

    def start_ranks(self, geometry: Geometry) -> Ranks:
        """The ranks of a fresh adapter. Raises UserError where a training would have none to cut."""
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
        """What cuts the ranks of an adapter's tensor."""
        if self.cuts is None:
            return None
        counted = partial(self.count_with, geometry)
        return Cutting(self.cuts, tensor, self.cut_names, counted, self.count(geometry))
