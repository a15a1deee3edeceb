"""LoRETTA (NAACL 2024, arXiv 2402.11417): LoRA or bottlenecks whose matrices are tensor trains."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tensorbench.methods.added import AddedAdapter, Addition
from tensorbench.methods.backbone import Backbone, Geometry
from tensorbench.methods.lowrank import Contracted, LowRankMethod, OwnPairs
from tensorbench.methods.sizes import OneRank
from tensorbench.methods.trains import Trains, TrainsOfSites, balanced, train_count, train_limit
from tensorbench.methods.validation import Scale

#: LoRETTA's modes of a (width, size) matrix, by width and size, from its reference code. Entries of the code
#: whose product is not width · size are left out.
PUBLISHED_MODES: dict[int, dict[int, tuple[int, ...]]] = {
    5: {768: (5, 8, 12, 8), 1024: (4, 8, 5, 8, 4), 4096: (16, 16, 5, 4, 4)},
    8: {768: (8, 8, 12, 8), 1024: (4, 8, 8, 8, 4), 4096: (16, 16, 8, 4, 4)},
    16: {768: (8, 16, 12, 8), 1024: (4, 8, 16, 8, 4), 4096: (16, 16, 16, 4, 4)},
    32: {768: (4, 8, 12, 8, 8)},
    64: {768: (8, 8, 12, 8, 8), 1024: (4, 8, 8, 8, 8, 4), 4096: (16, 16, 16, 4, 4, 4)},
    128: {768: (8, 16, 12, 8, 8), 1024: (4, 8, 16, 8, 8, 4), 4096: (16, 16, 16, 8, 4, 4)},
}
#: The width of a bottleneck. It is limited because factorising a large number takes long.
Width = Annotated[int, Field(gt=0, le=100_000)]

#: The largest number of modes of a matrix that is not in `PUBLISHED_MODES`.
MOST_MODES = 4


def modes_of(size: int, width: int) -> tuple[int, ...]:
    """Returns the modes of a (width, size) matrix, from the table of LoRETTA's reference code.

    For other sizes our rule is: at most four factors of the number of entries, with the smallest sum.
    """
    return PUBLISHED_MODES.get(width, {}).get(size) or balanced(size * width, MOST_MODES)


class LoRETTA(TrainsOfSites, LowRankMethod):
    """y = W·x + b + scale/width · B·A·dropout(x), with A (width, in) and B (out, width) each a tensor train.

    One train has the entries of Aᵀ (in, width), the other has those of Bᵀ (width, out), both row-major. All
    inner ranks are `rank`. Start (reference code): normal cores, such that the entries of A have variance
    1/(in + width) and those of B have variance 1/(out + width). So the initial update is not zero: its
    norm is about 5.6 per matrix of RoBERTa-base. The reference code also trains layer norms, and its
    classifier consists of trains. Here, layer norms and classifier are the same as for every other method.
    """

    name: ClassVar[str] = "loretta_rep"
    title: ClassVar[str] = "LoRETTA-rep"
    published_lr: ClassVar[float | None] = 1e-4

    #: LoRA's alpha. It is divided by `width`. 16 in the reference code.
    scale: Scale = 16.0
    dropout: float = Field(0.05, ge=0.0, lt=1.0)
    #: The rank of the update, which is LoRA's r. 8 in the reference code. (`rank` is the inner rank of the
    #: trains, 5 in the reference code.)
    width: Width = 8
    #: `published`: all cores start at random, as in the reference code. `zero`: the last core of every B
    #: starts at zero, so that the initial update is zero (our addition).
    start: Literal["published", "zero"] = "published"

    @property
    def nonzero_start(self) -> str:  # type: ignore[override]
        return "LoRETTA starts both of its factors at random" if self.start == "published" else ""

    def trains(self, geometry: Geometry) -> list[tuple[int, ...]]:
        """Returns the mode sizes of each tensor train in a layer."""
        sizes = [size for out, in_ in self.adapted(geometry).values() for size in (in_, out)]
        return [modes_of(size, self.width) for size in sizes]

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> _TwoTrains:
        return _TwoTrains(self, geometry, generator)


class _TwoTrains(OwnPairs):
    def __init__(self, method: LoRETTA, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__(geometry.sites(method.projections))
        self.width, self.scale = method.width, method.scale / method.width
        self.inputs: Any = nn.ModuleDict()
        self.outputs: Any = nn.ModuleDict()
        self.sizes = {name: in_ for name, (_, in_) in method.adapted(geometry).items()}
        for name, (out, in_) in method.adapted(geometry).items():
            for trains, size in ((self.inputs, in_), (self.outputs, out)):
                made = Trains(geometry.layers, modes_of(size, self.width), method.resolved_rank)
                made.draw_normal(1 / (size + self.width), generator)
                trains[name] = made
            if method.start == "zero":
                nn.init.zeros_(made.cores[-1])

    def contract(self) -> Contracted:
        inputs, outputs = self.inputs.items(), self.outputs.items()
        downs = {name: train.matrices(self.sizes[name]).mT * self.scale for name, train in inputs}
        ups = {name: train.matrices(self.width).mT for name, train in outputs}
        return self.contracted(downs, ups)


class LoRETTAAdapter(OneRank):
    """y = h + scale · up(act(down(h))), where h is the output of the output projection or of fc2.

    down and up are linear layers with biases and with matrices (hidden, width) and (width, hidden). Each
    matrix is a tensor train with inner ranks `rank`. Start (reference code): normal cores, such that the
    matrices have entries of variance 1/(hidden + width), and biases uniform in ±1/√n for a bias of n entries.
    So a fresh adapter is not the identity.

    The bottlenecks are placed before the residual connection and the norm, as in the reference code for
    encoders. The reference code for decoders places them elsewhere. Using the encoders' positions for
    decoders, too, is our choice.
    """

    name: ClassVar[str] = "loretta_adp"
    title: ClassVar[str] = "LoRETTA-adp"
    projections: ClassVar[tuple[str, ...]] = ("output", "fc2")
    not_low_rank: ClassVar[str] = "LoRETTA-adp is not linear"
    not_mergeable: ClassVar[str] = "its bottleneck is not linear, so that it is no change of a weight"
    published_lr: ClassVar[float | None] = 1e-4

    scale: Scale = 1.0
    #: The width of the bottleneck. 64 in the script of the reference code.
    width: Width = 64
    #: The activation function. The script of the reference code has `relu`, its configuration has `tanh`.
    activation: Literal["relu", "tanh"] = "relu"
    #: `published`: cores and biases start at random, as in the reference code. `zero`: the last core of up
    #: and the bias of up start at zero, so that a fresh adapter changes no output (our addition).
    start: Literal["published", "zero"] = "published"

    @property
    def nonzero_start(self) -> str:  # type: ignore[override]
        return "LoRETTA starts both of its matrices at random" if self.start == "published" else ""

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts 2·L · (2 · Σ r₋·n·r₊ + width + d), with the sum over the cores (r₋, n, r₊) of one matrix.

        L is the number of layers, d the hidden size, and `width` the width of the bottleneck.
        """
        modes = modes_of(geometry.hidden, self.width)
        per_site = 2 * train_count(modes, rank) + self.width + geometry.hidden
        return len(self.projections) * geometry.layers * per_site

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Returns the inner rank with which a train can represent every (hidden, width) matrix."""
        return (train_limit(modes_of(geometry.hidden, self.width)),)

    def put(self, backbone: Backbone, generator: torch.Generator) -> AddedAdapter:
        return AddedAdapter(backbone, self, lambda base: _Bottleneck(self, base.out_features, generator))


class _Bottleneck(Addition):
    def __init__(self, method: LoRETTAAdapter, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.size, self.width, self.scale = size, method.width, method.scale
        self.activation = F.relu if method.activation == "relu" else torch.tanh
        modes = modes_of(size, self.width)
        self.down, self.up = (Trains(1, modes, method.resolved_rank) for _ in range(2))
        self.down_bias, self.up_bias = (nn.Parameter(torch.zeros(n)) for n in (self.width, size))
        for train, bias in ((self.down, self.down_bias), (self.up, self.up_bias)):
            train.draw_normal(1 / (size + self.width), generator)
            nn.init.uniform_(bias, -(len(bias) ** -0.5), len(bias) ** -0.5, generator=generator)
        if method.start == "zero":
            nn.init.zeros_(self.up.cores[-1])
            nn.init.zeros_(self.up_bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(y.device.type, enabled=False):
            (down,), (up,) = self.down.matrices(self.size), self.up.matrices(self.width)
        narrow = self.activation(F.linear(y, down.T, self.down_bias))
        return F.linear(narrow, up.T, self.up_bias) * self.scale
