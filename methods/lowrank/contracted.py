"""The factors that a forward uses, and the base classes of the parameters from which they are computed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from tensorbench.methods.adapter import PartlyFrozen
from tensorbench.methods.backbone import Site
from tensorbench.methods.slices import by_site


@dataclass(frozen=True)
class Matrix:
    """A matrix that is applied between a down factor and an up factor.

    `entries` has the shape (r of the up factor, r of the down factor). For a site with n output slices,
    `entries` holds n such matrices, one below the other. For a site with n input slices, it holds n such
    matrices side by side.
    """

    entries: Tensor


@dataclass(frozen=True)
class Diagonal:
    """A diagonal matrix that is applied between a down factor and an up factor of the same r.

    `entries` has the shape (n, r): a diagonal for each of n output or input slices. Without slices, n is 1.
    All output slices of a site start from one activation with one dropout mask. Only their diagonals differ.
    """

    entries: Tensor

    def scaled(self, narrow: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Multiplies the activation `narrow` (N, r) or the factor `up` (out, r) by the diagonal.

        Multiplies whichever has fewer rows, since this is cheaper, and returns both. With n output slices,
        `narrow` becomes (N·n, r), or `up` becomes (n·out, r).
        """
        if len(narrow) < len(up):
            return (narrow.unsqueeze(1) * self.entries.to(narrow.dtype)).flatten(0, 1), up
        return narrow, (up * self.entries.unsqueeze(1)).flatten(0, 1)

    def summed(self, narrow: Tensor) -> Tensor:
        """Multiplies the activations of n input slices by their diagonals, and sums them.

        `narrow` is (N, n·r), with the activations side by side. The result is (N, r).
        """
        return (narrow.unflatten(1, self.entries.shape) * self.entries.to(narrow.dtype)).sum(1)


Middle = Matrix | Diagonal


@dataclass
class Contracted:
    """The factors of one forward: `downs[i]` (r, in), `ups[site]` (out, r), `biases[site]` (out,).

    `middles[site]`, if there is one, is applied between down and up. `Parametrisation` says which down factor
    a site uses, and how a site with slices uses its factors.
    """

    downs: list[Tensor]
    ups: dict[Site, Tensor]
    biases: dict[Site, Tensor] = field(default_factory=dict)
    middles: dict[Site, Middle] = field(default_factory=dict)

    def each(self, change: Callable[[Tensor], Tensor]) -> Contracted:
        """Returns a copy in which `change` was applied to every tensor."""
        return Contracted(
            [change(down) for down in self.downs],
            {site: change(up) for site, up in self.ups.items()},
            {site: change(bias) for site, bias in self.biases.items()},
            {site: replace(middle, entries=change(middle.entries)) for site, middle in self.middles.items()},
        )


class Parametrisation(PartlyFrozen):
    """A method's trained parameters and their contraction to factors."""

    #: For each adapted site, the index of its down factor in `Contracted.downs`. Several sites may share one.
    down_of: dict[Site, int]
    #: For each site whose input is sliced, the number of slices. The down factor is applied to each slice,
    #: with results side by side. Slices are as wide as the down factor; the last one may be narrower.
    input_slices: Mapping[Site, int] = MappingProxyType({})
    #: For each site whose output is sliced, the number of slices. `Contracted.middles` gives each slice an
    #: activation of width r, from which the up factor computes the slice. Slices are side by side; the last
    #: one may be truncated.
    output_slices: Mapping[Site, int] = MappingProxyType({})

    @abstractmethod
    def contract(self) -> Contracted:
        """Returns the factors of all sites, scale included, as differentiable functions of the parameters."""


class OwnPairs(Parametrisation):
    """A parametrisation in which every site has its own down factor."""

    def __init__(self, sites: Iterable[Site]) -> None:
        super().__init__()
        self.down_of = {site: index for index, site in enumerate(sites)}

    def contracted(self, downs: Mapping[str, Tensor], ups: Mapping[str, Tensor]) -> Contracted:
        """Returns the factors, given each projection's downs (layers, r, in) and ups (layers, out, r)."""
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
    """Combines a site's factors, middle and slices into one low-rank pair, down (r, in) and up (out, r).

    `shape` is the (out, in) of the site's weight. The last slices are truncated to it.
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
