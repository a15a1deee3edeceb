"""Contracted factors of a forward, and the parameters from which they are contracted."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from methods.adapter import PartlyFrozen
from methods.backbone import Site
from methods.lowrank.cutting import Cutting
from methods.slices import by_site


@dataclass(frozen=True)
class Matrix:
    """A matrix between a down factor and an up factor.

    `entries` is (r of the up, r of the down). For an output in n slices it holds n such matrices one below
    the other; for an input in n slices, side by side.
    """

    entries: Tensor


@dataclass(frozen=True)
class Diagonal:
    """A diagonal between a down factor and an up factor of the same r.

    `entries` is (n, r): one diagonal for each of n slices of the output or the input, n = 1 without slices.
    """

    entries: Tensor

    def scaled(self, narrow: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Scales the activation `narrow` (N, r) or `up` (out, r), whichever has fewer rows. Returns both.

        With n slices the activation becomes (N·n, r), or `up` becomes (n·out, r).
        """
        if len(narrow) < len(up):
            return (narrow.unsqueeze(1) * self.entries.to(narrow.dtype)).flatten(0, 1), up
        return narrow, (up * self.entries.unsqueeze(1)).flatten(0, 1)

    def summed(self, narrow: Tensor) -> Tensor:
        """Scales the activations of n input slices, (N, n·r) side by side, and sums them to (N, r)."""
        return (narrow.unflatten(1, self.entries.shape) * self.entries.to(narrow.dtype)).sum(1)


Middle = Matrix | Diagonal


@dataclass
class Contracted:
    """The factors of one forward: `downs[i]` (r, in), `ups[site]` (out, r), `biases[site]` (out,).

    An optional `middles[site]` is applied between down and up. Slices of an output share one activation and
    its dropout; the results of input slices are summed (see `Parametrisation`).
    """

    downs: list[Tensor]
    ups: dict[Site, Tensor]
    biases: dict[Site, Tensor] = field(default_factory=dict)
    middles: dict[Site, Middle] = field(default_factory=dict)

    def each(self, change: Callable[[Tensor], Tensor]) -> Contracted:
        """Applies `change` to every tensor."""
        return Contracted(
            [change(down) for down in self.downs],
            {site: change(up) for site, up in self.ups.items()},
            {site: change(bias) for site, bias in self.biases.items()},
            {site: replace(middle, entries=change(middle.entries)) for site, middle in self.middles.items()},
        )


class Parametrisation(PartlyFrozen):
    """A method's trained parameters and their contraction to factors."""

    #: The index of each adapted site's down factor in `downs`. Sites with the same index share its product.
    down_of: dict[Site, int]
    #: Number of input slices per site. The down factor is applied to each slice, with results side by side.
    #: Slices are as wide as the down factor; the last one may be narrower.
    input_slices: Mapping[Site, int] = MappingProxyType({})
    #: Number of output slices per site. The up factor is applied to each of n equal slices of the activation
    #: of width r, with results side by side. The last result may be cut.
    output_slices: Mapping[Site, int] = MappingProxyType({})
    #: Cuts ranks during training. None if ranks stay.
    cutting: Cutting | None = None

    @abstractmethod
    def contract(self) -> Contracted:
        """The factors of all sites, differentiable, scale included."""


class OwnPairs(Parametrisation):
    """A parametrisation in which every site has its own down factor."""

    def __init__(self, sites: Iterable[Site]) -> None:
        super().__init__()
        self.down_of = {site: index for index, site in enumerate(sites)}

    def contracted(self, downs: Mapping[str, Tensor], ups: Mapping[str, Tensor]) -> Contracted:
        """Builds the factors from downs (layers, r, in) and ups (layers, out, r) of each projection."""
        of_sites = by_site(downs)
        return Contracted([of_sites[site] for site in self.down_of], by_site(ups))


def pair(
    down: Tensor,
    middle: Middle | None,
    up: Tensor,
    shape: tuple[int, int],
    input_slices: int,
    output_slices: int,
) -> tuple[Tensor, Tensor]:
    """Multiplies a site's factors, middle and slices out to one pair: down (r, in) and up (out, r).

    `shape` is the (out, in) of the site's weight, to which the last slices are cut.
    """
    if isinstance(middle, Diagonal):
        if output_slices > 1:
            up = (up * middle.entries.unsqueeze(1)).flatten(0, 1)
        else:
            down = (middle.entries.T.unsqueeze(2) * down.unsqueeze(1)).flatten(1)
    else:
        down = torch.block_diag(*[down] * input_slices)
        up = torch.block_diag(*[up] * output_slices)
        down = down if middle is None else middle.entries @ down
    out, in_ = shape
    return down[:, :in_], up[:out]
