"""LoRA-XS (arXiv 2405.17604): a small trained matrix between frozen singular vectors of each weight."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from tensorbench.methods.adapter import Adapter
from tensorbench.methods.backbone import Backbone, Geometry
from tensorbench.methods.lowrank import Contracted, LowRankMethod, Matrix, OwnPairs
from tensorbench.methods.singular import singular
from tensorbench.methods.sizes import AnyTargets, OneRank, Targeted
from tensorbench.methods.validation import Scale

#: The standard deviation of the trained matrices at the start, as in the reference code.
START_STD = 1e-5


class LoRAXS(OneRank, Targeted, LowRankMethod):
    """y = W·x + b + scale/rank · B·R·A·dropout(x), where only R (rank, rank) is trained.

    With W ≈ U·Σ·Vᵀ from the largest `rank` singular values, A = Σ·Vᵀ and B = U. An SVD may differ between
    machines, so A and B are stored with a trained adapter. R starts normal with standard deviation 1e-5
    (reference code), so the initial update is small but not zero.

    The reference code adapts query, value, the output projection and the MLP's output (fc2) of RoBERTa, and
    all linear layers of LLaMA. Here, `qkvo+mlp` adapts all linear layers of every model.
    """

    name: ClassVar[str] = "lora_xs"
    title: ClassVar[str] = "LoRA-XS"
    #: The largest learning rate in the reference code for GLUE, which tries 1e-4, 5e-4 and 1e-3.
    published_lr: ClassVar[float | None] = 1e-3
    rank_bound: ClassVar[str] = "no weight has more singular vectors"

    targets: AnyTargets = "qkvo+mlp"
    #: LoRA's alpha. It is divided by the rank.
    scale: Scale = 16.0
    #: `svd`: A and B are singular vectors. `random`: they are kaiming-uniform, as in the authors' ablation,
    #: and recomputed from a seed.
    basis: Literal["svd", "random"] = "svd"
    #: `published`: R starts at random, as described above. `zero`: R starts at zero, so that the initial
    #: update is exactly zero (our addition).
    start: Literal["published", "zero"] = "published"

    @property
    def nonzero_start(self) -> str:  # type: ignore[override]
        return "LoRA-XS starts R with a standard deviation of 1e-5" if self.start == "published" else ""

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts r², summed over all sites."""
        return geometry.layers * len(self.adapted(geometry)) * rank**2

    def frozen_count(self, geometry: Geometry) -> int:
        """Counts the entries of A and B: r · Σ (in + out), with the sum over all sites."""
        return geometry.layers * self.resolved_rank * sum(map(sum, self.adapted(geometry).values()))

    def kept_count(self, geometry: Geometry) -> int:
        return self.frozen_count(geometry) if self.basis == "svd" else 0

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Returns the smallest side of any adapted weight, since that weight has no more singular vectors."""
        return (min(map(min, self.adapted(geometry).values())),)

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> _Cores:
        return _Cores(self, geometry, generator)

    def put(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        adapter: Any = super().put(backbone, generator)
        if self.basis == "svd":
            adapter.parametrisation.decompose([base.weight for base in adapter.bases.values()])
        return adapter


class _Cores(OwnPairs):
    def __init__(self, method: LoRAXS, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__(geometry.sites(method.projections))
        rank = method.resolved_rank
        self.scale, self.stored = method.scale / rank, method.basis == "svd"
        cores = torch.zeros(len(self.down_of), rank, rank)
        if method.start == "published":
            nn.init.normal_(cores, std=START_STD, generator=generator)
        self.cores = nn.Parameter(cores)
        if not self.stored:
            self.draw_seed(generator)
        for site, index in self.down_of.items():
            out, in_ = geometry.shape(site.projection)
            for name, shape in (("A", (rank, in_)), ("B", (out, rank))):
                self.register_buffer(f"{name}{index}", torch.zeros(shape), persistent=self.stored)
        self.remake()

    def remake(self) -> None:
        if not self.stored:
            self.draw(partial(nn.init.kaiming_uniform_, a=math.sqrt(5)))

    @torch.no_grad()
    def decompose(self, weights: list[nn.Parameter]) -> None:
        """Fills A and B of every site from the largest singular values of its weight."""
        rank = self.cores.shape[-1]
        for index, weight in enumerate(weights):
            u, s, vh = singular(weight, rank)
            self.get_buffer(f"A{index}").copy_(s[:, None] * vh)
            self.get_buffer(f"B{index}").copy_(u)

    def contract(self) -> Contracted:
        downs = [self.get_buffer(f"A{index}") for index in range(len(self.down_of))]
        ups = {site: self.get_buffer(f"B{index}") for site, index in self.down_of.items()}
        middles = map(Matrix, (self.cores * self.scale).unbind())
        return Contracted(downs, ups, middles=dict(zip(self.down_of, middles, strict=True)))
