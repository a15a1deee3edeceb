"""MetaTT (arXiv 2506.09105): the updates of all layers and projections as one tensor train."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from torch import nn

from methods.backbone import Geometry
from methods.errors import UserError
from methods.lowrank import Contracted, LowRankMethod, Parametrisation
from methods.sizes import OneRank
from methods.targeted import Targeted
from methods.trains import chain


class MetaTT(OneRank, Targeted, LowRankMethod):
    """y = W·x + b + scale · ΔW·x, where ΔW is a slice of a tensor train; all inner ranks are `rank`.

    `4d`: the modes are input, layer, projection, output, in this order. `5d`: the output is cut into heads
    and their channels. No reference code was found, so that what the paper's accessible text leaves open is
    our choice, and no result here reproduces the paper: the order of 5D's modes, the start (first core zero,
    the others rectangular identities for every layer and projection), a scale that is not divided by the
    rank, and which projections are adapted by default.
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
        """The size of every mode. Raises UserError unless all adapted weights have one shape."""
        shapes = self.adapted(geometry)
        if len(set(shapes.values())) > 1:
            told = ", ".join(f"{name} {out} × {in_}" for name, (out, in_) in shapes.items())
            raise UserError(
                f"{self.label}: one train holds all weights, which therefore need one shape; here {told}"
            )
        (out, in_), heads = next(iter(shapes.values())), geometry.heads
        outputs = (out,) if self.modes == "4d" else (heads, out // heads)
        return (in_, geometry.layers, len(shapes), *outputs)

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """(in + out)·r + (L + M)·r² for M projections; in 5D (in + out/H)·r + (L + M + H)·r²."""
        first, *middle, last = self.shape(geometry)
        return (first + last) * rank + sum(middle) * rank**2

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """The smaller side of a weight, of which the ends are bases."""
        (shape, *_) = self.adapted(geometry).values()
        return (min(shape),)

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        return _OneTrain(self, geometry)


class _OneTrain(Parametrisation):
    def __init__(self, method: MetaTT, geometry: Geometry) -> None:
        super().__init__()
        self.scale = method.scale
        first, *middle, last = method.shape(geometry)
        rank = method.resolved_rank
        identities = [torch.eye(rank).unsqueeze(1).repeat(1, size, 1) for size in middle]
        cores = [torch.zeros(1, first, rank), *identities, torch.eye(rank, last).unsqueeze(-1)]
        self.cores = nn.ParameterList(cores)
        self.down_of = dict.fromkeys(geometry.sites(method.projections), 0)

    def contract(self) -> Contracted:
        first, layers, projections, *outputs = self.cores
        # (layers · projections, r, r): layer by layer, as the sites are.
        middles = chain([layers, projections]).movedim(1, 0)
        ups = (middles @ chain(outputs).squeeze(-1)).mT
        return Contracted([first[0].T * self.scale], dict(zip(self.down_of, ups.unbind(), strict=True)))
