"""Slices of one shape, by which methods that stack matrices support sites of unequal shapes.

The tensor is that of the model with full attention. Query, key, value and output are one slice each, of the
hidden size d by the attention's width, where key and value have a head for every query head. The MLP's
projections are cut into ⌈mlp / d⌉ slices of d × d, gate and fc1 along their output and fc2 along its input;
the last slice is cut to the remaining size. `methods.lowrank.StackedMethod` describes how a site uses its
slices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from methods.backbone import MLP, Geometry, Site

#: The projections that are sliced along their output, and along their input.
CUT_OUTPUTS, CUT_INPUTS = ("gate", "fc1"), ("fc2",)


@dataclass(frozen=True)
class Slices:
    """The slices of one layer's projections, in the order in which a method stacks them."""

    projections: tuple[str, ...]
    geometry: Geometry

    @classmethod
    def of(cls, projections: Iterable[str], geometry: Geometry) -> Slices:
        """The slices of the given projections, without projections that the geometry lacks."""
        return cls(geometry.having(projections), geometry)

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of slices of each projection."""
        return tuple(mlp_slices(self.geometry) if name in MLP else 1 for name in self.projections)

    @property
    def width(self) -> int:
        """The side of a slice opposite d: as long as the attention's width, and at least d with an MLP."""
        attention = self.geometry.attention_width
        return max(attention, self.geometry.hidden) if set(self.projections) & set(MLP) else attention

    def __len__(self) -> int:
        return sum(self.counts)

    def positions(self, projection: str) -> range:
        """The positions of a projection's slices in the stack."""
        index = self.projections.index(projection)
        end = list(accumulate(self.counts))[index]
        return range(end - self.counts[index], end)

    def split(self, stack: Tensor, dim: int) -> dict[str, Tensor]:
        """Splits dimension `dim` of `stack`, which counts slices, into one part per projection."""
        return dict(zip(self.projections, stack.split(self.counts, dim), strict=True))


def mlp_slices(geometry: Geometry) -> int:
    """The number of slices into which each of the MLP's projections is cut."""
    return -(-geometry.mlp // geometry.hidden)


def turned(geometry: Geometry) -> bool:
    """Whether `output`, whose heads are on its input side, uses its slice transposed.

    True if the attention's width is not d, since the slice's d-sized mode must then be the output. Otherwise
    `output` is a slice like any other, as in the published methods.
    """
    return geometry.attention_width != geometry.hidden


def cut_inputs(sites: Iterable[Site], geometry: Geometry) -> dict[Site, int]:
    """The number of slices of each site whose input is sliced, for `Parametrisation.input_slices`."""
    return {site: mlp_slices(geometry) for site in sites if site.projection in CUT_INPUTS}


def cut_outputs(sites: Iterable[Site], geometry: Geometry) -> dict[Site, int]:
    """The number of slices of each site whose output is sliced, for `Parametrisation.output_slices`."""
    return {site: mlp_slices(geometry) for site in sites if site.projection in CUT_OUTPUTS}


def joined(projection: str, matrices: Tensor) -> Tensor:
    """Joins the matrices of a projection's slices, (layers, slices, r out, r in), into one per layer.

    Matrices of input slices are put side by side, those of output slices one below the other.
    """
    return matrices.transpose(1, 2).flatten(2) if projection in CUT_INPUTS else matrices.flatten(1, 2)


def by_site(stacks: Mapping[str, Tensor]) -> dict[Site, Tensor]:
    """Splits stacked tensors (layers, …) of projections into one tensor per site."""
    return {
        Site(layer, name): tensor
        for name, stack in stacks.items()
        for layer, tensor in enumerate(stack.unbind())
    }
