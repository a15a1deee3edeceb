"""Slices of one shape, so that methods can stack the updates of sites with unequal shapes.

The slices are those of the model with full attention, in which key and value have a head for every query
head. Query, key, value and output have one slice each, whose sides are the hidden size d and the attention's
width. Each projection of the MLP consists of ⌈mlp / d⌉ slices of d × d. The slices divide gate and fc1 along
their output, and fc2 along its input. The last slice is truncated to the remaining size.
`tensorbench.methods.lowrank.StackedMethod` describes how a site uses its slices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate

from torch import Tensor

from tensorbench.methods.backbone import MLP, Geometry, Site

#: The projections that are sliced along their output, and the projection that is sliced along its input.
CUT_OUTPUTS, CUT_INPUTS = ("gate", "fc1"), ("fc2",)


class Slices:
    """The slices of one layer's projections, in the order in which a method stacks them.

    `gate` is skipped if the MLP is not gated.
    """

    def __init__(self, projections: Iterable[str], geometry: Geometry) -> None:
        self.projections = geometry.having(projections)
        #: The number of slices of each projection.
        self.counts = [mlp_slices(geometry) if name in MLP else 1 for name in self.projections]
        #: The size of a slice along its side that is not d. It is the attention's width, but at least d if
        #: projections of the MLP are among the slices.
        self.width = geometry.attention_width
        if set(self.projections) & set(MLP):
            self.width = max(self.width, geometry.hidden)

    def __len__(self) -> int:
        return sum(self.counts)

    def positions(self, projection: str) -> range:
        """Returns the positions of a projection's slices in the stack of a layer."""
        index = self.projections.index(projection)
        end = list(accumulate(self.counts))[index]
        return range(end - self.counts[index], end)

    def split(self, stack: Tensor, dim: int) -> dict[str, Tensor]:
        """Splits `stack`, whose dimension `dim` counts slices, into one tensor for each projection."""
        return dict(zip(self.projections, stack.split(self.counts, dim), strict=True))


def mlp_slices(geometry: Geometry) -> int:
    """Returns the number of slices of each projection of the MLP."""
    return -(-geometry.mlp // geometry.hidden)


def turned(geometry: Geometry) -> bool:
    """Whether the projection `output` uses its slice transposed.

    A slice maps d inputs to as many outputs as the attention's width, but `output` reads this width and
    writes d. So if the two differ, the slice has to be transposed. Otherwise `output` uses its slice like any
    other projection, as in the published methods.
    """
    return geometry.attention_width != geometry.hidden


def cut_sites(sites: Iterable[Site], geometry: Geometry, projections: tuple[str, ...]) -> dict[Site, int]:
    """Returns the number of slices of each site whose projection is among `projections`.

    For `CUT_INPUTS`, the result is the value of `Parametrisation.input_slices`. For `CUT_OUTPUTS`, it is the
    value of `Parametrisation.output_slices`.
    """
    return {site: mlp_slices(geometry) for site in sites if site.projection in projections}


def joined(projection: str, matrices: Tensor) -> Tensor:
    """Joins the matrices of a projection's slices, (layers, slices, r out, r in), to one matrix per layer.

    The matrices of input slices are put side by side, and those of output slices one below the other.
    """
    return matrices.transpose(1, 2).flatten(2) if projection in CUT_INPUTS else matrices.flatten(1, 2)


def by_site(stacks: Mapping[str, Tensor]) -> dict[Site, Tensor]:
    """Splits the tensor (layers, …) of each projection into one tensor per site."""
    return {
        Site(layer, name): tensor
        for name, stack in stacks.items()
        for layer, tensor in enumerate(stack.unbind())
    }
