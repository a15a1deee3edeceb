"""MetaTT (arXiv 2506.09105): the updates of all layers and projections as one tensor train."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal, Self

import torch
from torch import nn

from methods.backbone import MLP, Geometry
from methods.lowrank import Contracted, CutMethod, Matrix, Parametrisation
from methods.lowrank.cutting import TrainCores
from methods.sizes import OneRank, Targeted
from methods.slices import Slices, by_site, cut_inputs, cut_outputs, joined, turned
from methods.trains import chain, train_count


class MetaTT(OneRank, Targeted, CutMethod):
    """y = W·x + b + scale · ΔW·x, where ΔW is a slice of a tensor train; all inner ranks are `rank`.

    `4d`: the modes are input, layer, projection, output, in this order. `5d`: the output is split into heads
    and their channels. No reference code was found, so no result here reproduces the paper. Where the paper's
    accessible text is silent, these are our choices: the order of 5D's modes, the start (first core zero, the
    others rectangular identities for every layer and projection), a scale not divided by the rank, the
    projections adapted by default, and the slices of weights of unequal shapes (as in all stacking methods).
    5D has as many heads as its widest slice needs.

    With `cuts`, sweeps over the bonds truncate by SVDs, as in the paper's rank-adaptive training (inspired by
    DMRG), and each bond gets its own rank. Our choices are the steps of the sweeps, one budget for all bonds,
    and transforming AdamW's moments.
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

    def slices(self, geometry: Geometry) -> Slices:
        """The slices into which the projections of a layer are cut."""
        return Slices.of(self.projections, geometry)

    def shape(self, geometry: Geometry) -> tuple[int, ...]:
        """The size of every mode."""
        slices, channels = self.slices(geometry), geometry.head_size
        outputs = (slices.width,) if self.modes == "4d" else (-(-slices.width // channels), channels)
        return (geometry.hidden, geometry.layers, len(slices), *outputs)

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts (d + H·h)·r + (L + S)·r² for S slices of a layer; in 5D (d + h)·r + (L + S + H)·r².

        `Geometry` explains d, H, h and L. With an MLP, H·h is replaced by max(d, H·h), and H by
        ⌈max(d, H·h) / h⌉.
        """
        return train_count(self.shape(geometry), rank)

    @property
    def cut_names(self) -> tuple[str, ...]:
        """The bonds of the train, each named by its two neighbouring modes."""
        outputs = ("output",) if self.modes == "4d" else ("head", "head_size")
        names = ("input", "layer", "projection", *outputs)
        return tuple(f"{left}-{right}" for left, right in pairwise(names))

    @property
    def budget_ranks(self) -> tuple[int, ...]:
        return (self.resolved_rank,) * len(self.cut_names)

    def cut_limits(self, geometry: Geometry) -> tuple[int, ...]:
        return (max(geometry.hidden, self.slices(geometry).width),) * len(self.cut_names)

    def count_with(self, geometry: Geometry, ranks: tuple[int, ...]) -> int:
        return train_count(self.shape(geometry), ranks)

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """The larger of d and a slice's width: what the first and last core can use.

        Inner bonds could use more.
        """
        return (max(geometry.hidden, self.slices(geometry).width),)

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        return _OneTrain(self, geometry)


class _OneTrain(Parametrisation):
    def __init__(self, method: MetaTT, geometry: Geometry) -> None:
        super().__init__()
        self.scale, self.layers = method.scale, geometry.layers
        self.slices = method.slices(geometry)
        #: H·h if `output` uses its slice transposed (the last core is then its down factor), otherwise 0.
        self.turned = geometry.attention_width if turned(geometry) else 0
        first, *middle, last = method.shape(geometry)
        # All bonds start with the same rank.
        rank, *_ = method.start_ranks(geometry)
        identities = [torch.eye(rank).unsqueeze(1).repeat(1, size, 1) for size in middle]
        cores = [torch.zeros(1, first, rank), *identities, torch.eye(rank, last).unsqueeze(-1)]
        self.cores = nn.ParameterList(cores)
        self.cutting = method.cutting(geometry, TrainCores(list(self.cores)))
        sites = geometry.sites(method.projections)
        self.down_of = {site: int(bool(self.turned) and site.projection == "output") for site in sites}
        self.input_slices, self.output_slices = cut_inputs(sites, geometry), cut_outputs(sites, geometry)

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
