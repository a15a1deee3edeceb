"""LoRETTA-adp (NAACL 2024, arXiv 2402.11417): bottlenecks of tensor trains after layers."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorbench.baselines.shapes import Width, loretta_modes
from tensorbench.methods.added import AddedAdapter, Addition
from tensorbench.methods.backbone import Backbone, Geometry
from tensorbench.methods.sizes import OneRank
from tensorbench.methods.trains import Trains, train_count, train_limit
from tensorbench.methods.validation import Scale

Activation = Literal["relu", "tanh"]


class LoRETTAAdapter(OneRank):
    """y = h + scale · up(act(down(h))), where h is the output of the output projection or of fc2.

    down and up are linear layers with biases and with matrices (hidden, width) and (width, hidden). Each
    matrix is a tensor train with inner ranks `rank`. Start (reference code): normal cores, such that the
    matrices have entries of variance 1/(hidden + width), and biases uniform in ±1/√(their number). So a fresh
    adapter is not the identity.

    In the reference code for encoders, the bottlenecks are in the same positions, before residual and norm.
    For decoders, the reference code has other positions. Keeping the encoders' positions is our choice.
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
    activation: Activation = "relu"
    #: `zero`: the last core of up and the bias of up start at zero, so that a fresh adapter changes no output
    #: (our addition).
    start: Literal["published", "zero"] = "published"

    @property
    def nonzero_start(self) -> str:  # type: ignore[override]
        return "LoRETTA starts both of its matrices at random" if self.start == "published" else ""

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts 2·L · (2 · Σ r₋·n·r₊ + width + d), with the sum over the cores (r₋, n, r₊) of one matrix.

        L is the number of layers, d the hidden size, and `width` the width of the bottleneck.
        """
        modes = loretta_modes(geometry.hidden, self.width)
        per_site = 2 * train_count(modes, rank) + self.width + geometry.hidden
        return len(self.projections) * geometry.layers * per_site

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Returns the inner rank with which a train can represent every (hidden, width) matrix."""
        return (train_limit(loretta_modes(geometry.hidden, self.width)),)

    def put(self, backbone: Backbone, generator: torch.Generator) -> AddedAdapter:
        return AddedAdapter(backbone, self, lambda _, base: _Bottleneck(self, base.out_features, generator))


class _Bottleneck(Addition):
    def __init__(self, method: LoRETTAAdapter, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.size, self.width, self.scale = size, method.width, method.scale
        self.activation = F.relu if method.activation == "relu" else torch.tanh
        modes = loretta_modes(size, self.width)
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
