"""Square slices: how methods that stack d×d matrices take in the MLP.

Query, key, value and output are one slice each. fc1 is cut along its output and fc2 along its input, into
`MLP_SLICES` slices each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from methods.backbone import Geometry, Site
from methods.errors import UserError

#: Slices of hidden × hidden in fc1 and in fc2.
MLP_SLICES = 4

#: The projections that are cut along their output, and along their input.
CUT_OUTPUTS, CUT_INPUTS = ("fc1",), ("fc2",)


@dataclass(frozen=True)
class Slices:
    """The slices of one layer's projections, in the order in which a method stacks them."""

    projections: tuple[str, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """The slices of each projection."""
        return tuple(MLP_SLICES if name in CUT_OUTPUTS + CUT_INPUTS else 1 for name in self.projections)

    def __len__(self) -> int:
        return sum(self.counts)

    def positions(self, projection: str) -> range:
        """Where in the stack a projection's slices are."""
        index = self.projections.index(projection)
        end = list(accumulate(self.counts))[index]
        return range(end - self.counts[index], end)

    def split(self, stack: Tensor, dim: int) -> dict[str, Tensor]:
        """The part of each projection, cut from the dimension that counts slices."""
        return dict(zip(self.projections, stack.split(self.counts, dim), strict=True))

    def check(self, geometry: Geometry, label: str) -> None:
        """Raises UserError, with the method's label, unless fc1 and fc2 are whole slices."""
        if len(self) > len(self.projections) and geometry.mlp != MLP_SLICES * geometry.hidden:
            raise UserError(
                f"{label} stacks fc1 and fc2 as {MLP_SLICES} slices of hidden × hidden each, so it needs an "
                f"MLP of {MLP_SLICES} × hidden; this backbone has {geometry}"
            )


def cut_inputs(sites: Iterable[Site]) -> dict[Site, int]:
    """The sites whose input is cut, with the number of slices: `Parametrisation.input_slices`."""
    return {site: MLP_SLICES for site in sites if site.projection in CUT_INPUTS}


def cut_outputs(sites: Iterable[Site]) -> dict[Site, int]:
    """The sites whose output is cut, with the number of slices: `Parametrisation.output_slices`."""
    return {site: MLP_SLICES for site in sites if site.projection in CUT_OUTPUTS}


def by_site(stacks: Mapping[str, Tensor]) -> dict[Site, Tensor]:
    """Tensors (layers, …) of some projections, taken apart to one for each site."""
    return {
        Site(layer, name): tensor
        for name, stack in stacks.items()
        for layer, tensor in enumerate(stack.unbind())
    }
