"""What a site takes of its slice, where a method stacks sites of unequal shapes.

A stacking method builds the tensor of the model with full attention (see `methods.slices`) and contracts it
to the pairs of that model. Its parametrisation need not know that heads are shared, or that the last slice of
an MLP is cut: what the real weight takes is linear in the rows of `up`, so that each pair stays a pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from methods.backbone import SHARED_HEADS, Geometry, Site
from methods.lowrank.contracted import Contracted, Parametrisation
from methods.lowrank.method import LowRankMethod
from methods.validation import Later

#: What a key or value head takes that several query heads share. `tied`: the mean of the slices of these
#: query heads, which of all updates that keep their keys equal is the nearest to that of full attention.
#: `cut`: the first kv_heads · head_size rows, as VeRA in peft takes them.
SharedHeads = Literal["tied", "cut"]


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
