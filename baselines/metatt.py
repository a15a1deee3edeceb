"""MetaTT (arXiv 2506.09105): the updates of all layers and projections as one tensor train."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from torch import nn

from tensorbench.methods.backbone import MLP, Geometry
from tensorbench.methods.lowrank import Contracted, Matrix, SharedEnds, StackedMethod
from tensorbench.methods.sizes import OneRank, Targeted
from tensorbench.methods.slices import by_site, joined
from tensorbench.methods.trains import chain, train_count


class MetaTT(OneRank, Targeted, StackedMethod):
    """y = W·x + b + scale · ΔW·x, where ΔW is a slice of a tensor train. All inner ranks are `rank`.

    With `4d`, the modes are input, layer, projection and output, in this order. With `5d`, the output is
    split into heads and their channels. There are as many heads as the widest slice needs.

    No reference code was found, so no result here reproduces the paper. Where the paper's accessible text is
    silent, these are our choices: the order of the modes in 5D; the start (first core zero, all other cores
    rectangular identities for every layer and projection); a scale not divided by the rank; the projections
    adapted by default; and the slices of weights of unequal shapes, which are those of every method that
    stacks updates.

    The paper's rank-adaptive training (inspired by DMRG) is not implemented.
    """

    name: ClassVar[str] = "metatt"
    titled: ClassVar[frozenset[str]] = frozenset({"rank", "modes"})
    fixed_start: ClassVar[str] = "MetaTT starts from zeros and identities"

    modes: Literal["4d", "5d"] = "4d"

    @classmethod
    def presets(cls) -> tuple[Self, ...]:
        return cls.model_validate({}), cls.model_validate({"modes": "5d", "targets": "qkvo"})

    @classmethod
    def listed(cls) -> tuple[Self, ...]:
        return cls.model_validate({}), cls.model_validate({"modes": "5d"})

    @property
    def title(self) -> str:
        return f"MetaTT-{self.modes.upper()}"

    def shape(self, geometry: Geometry) -> tuple[int, ...]:
        """Returns the size of every mode."""
        slices, channels = self.slices(geometry), geometry.head_size
        outputs = (slices.width,) if self.modes == "4d" else (-(-slices.width // channels), channels)
        return (geometry.hidden, geometry.layers, len(slices), *outputs)

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts (d + H·h)·r + (L + S)·r² in 4D, and (d + h)·r + (L + S + H)·r² in 5D.

        S is the number of slices of a layer, and `Geometry` explains d, H, h and L. If the MLP is adapted,
        H·h is replaced by max(d, H·h), and H by ⌈max(d, H·h) / h⌉.
        """
        return train_count(self.shape(geometry), rank)

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Returns the larger of d and a slice's width: the first and last core cannot use larger ranks.

        Inner bonds could use larger ranks.
        """
        return (max(geometry.hidden, self.slices(geometry).width),)

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> _OneTrain:
        return _OneTrain(self, geometry)


class _OneTrain(SharedEnds):
    def __init__(self, method: MetaTT, geometry: Geometry) -> None:
        super().__init__(method, geometry)
        first, *middle, last = method.shape(geometry)
        rank = method.resolved_rank
        identities = [torch.eye(rank).unsqueeze(1).repeat(1, size, 1) for size in middle]
        cores = [torch.zeros(1, first, rank), *identities, torch.eye(rank, last).unsqueeze(-1)]
        self.cores = nn.ParameterList(cores)

    def contract(self) -> Contracted:
        first, layers, stack, *last = self.cores
        inputs, outputs = first[0], chain(last).squeeze(-1)
        # (layers, slices, r of the input, r of the output) of every projection.
        middles = self.slices.split(chain([layers, stack]).movedim(1, 0).unflatten(0, (self.layers, -1)), 1)
        downs, ups, matrices = [inputs.T * self.scale], {}, {}
        for name, middle in middles.items():
            if name in MLP:
                ups[name] = outputs.T.expand(self.layers, -1, -1)
                matrices[name] = joined(name, middle.mT)
            elif name == "output" and self.turned:
                downs.append(outputs[:, : self.turned] * self.scale)
                ups[name] = inputs @ middle[:, 0]
            else:
                ups[name] = (middle[:, 0] @ outputs).mT
        entries = by_site(matrices)
        return Contracted(downs, by_site(ups), middles={site: Matrix(entries[site]) for site in entries})
