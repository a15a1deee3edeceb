"""FacT (AAAI 2023, arXiv 2212.03145): every linear map of the model as slices of one tensor."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from tltorch import TTTensor, TuckerTensor
from torch import Tensor, nn

from methods.backbone import MLP_SLICES, PROJECTIONS, Geometry, Site
from methods.lowrank import Contracted, DropoutAt, LowRankMethod, Parametrisation
from methods.sizes import OneRank

#: query, key, value and output, then the slices of fc1 and of fc2.
LAYER_SLICES = (4, MLP_SLICES, MLP_SLICES)


class _FacT(OneRank, LowRankMethod):
    """y = W·x + b + scale · V·dropout(Σ·U·x), with U and V shared by the whole model.

    fc1's output and fc2's input are cut into four slices, so a layer has 12 of hidden × hidden, each
    with a Σ of its own. V starts at zero, U as a torch linear layer does (uniform ±1/√hidden).
    Published scales (reference code, VTAB-1k; reached at the rank in brackets): TT 0.01 (8) for DTD
    and 100 (8) for EuroSAT, TK 0.01 (16) for DTD and 100 (32) for EuroSAT.
    """

    dropout_at: ClassVar[DropoutAt] = "before_up"

    #: On Σ·U·x, rank wide (fc1: 4 · rank). 0.1 in the reference code.
    dropout: float = Field(0.1, ge=0.0, lt=1.0)

    @property
    def projections(self) -> tuple[str, ...]:
        return PROJECTIONS


class FacTTT(_FacT):
    """The tensor-train form: one free Σ for each slice.

    Σ starts as the reference's linear layers do, uniform ±1/√rank, and ±1/√(4·rank) for fc2, whose
    four slices are one layer there.
    """

    name: ClassVar[str] = "fact_tt"

    @property
    def title(self) -> str:
        return "FacT-TT"

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """2·d·r + 12·L·r²."""
        geometry.check_mlp_slices(self.title)
        return 2 * geometry.hidden * rank + sum(LAYER_SLICES) * geometry.layers * rank**2

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        return _TensorTrain(self, geometry, generator)


class FacTTK(_FacT):
    """The Tucker form: each Σ is a mixture of the slices of one core, C ×₃ P.

    C and P start xavier-uniform. Σ is the mixture transposed, except for fc2, which takes it as it is.
    """

    name: ClassVar[str] = "fact_tk"

    #: `paper`: each slice of fc1 and fc2 has a mixture of its own. `reference`: as the reference code
    #: flattens the four mixtures (r, r, 4) to (r, 4·r) without a permute, so that what is written to
    #: column rank · 4 + slice is read as slice · r + rank, and every slice is of all four.
    mlp_slices: Literal["paper", "reference"] = "paper"

    @property
    def title(self) -> str:
        return "FacT-TK"

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """2·d·r + 12·L·r + r³."""
        geometry.check_mlp_slices(self.title)
        return (2 * geometry.hidden + sum(LAYER_SLICES) * geometry.layers) * rank + rank**3

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        return _Tucker(self, geometry, generator)


class _Slices(Parametrisation):
    """U and V for all sites, and between them each slice's Σ."""

    def __init__(self, scale: float, geometry: Geometry) -> None:
        super().__init__()
        self.scale = scale
        self.layers = geometry.layers
        sites = [Site(layer, name) for layer in range(geometry.layers) for name in PROJECTIONS]
        self.down_of = dict.fromkeys(sites, 0)
        self.input_slices = {site: MLP_SLICES for site in sites if site.projection == "fc2"}
        self.output_slices = {site: MLP_SLICES for site in sites if site.projection == "fc1"}

    @abstractmethod
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """U and V, both (d, r), and Σ, (L, 12, r out, r in)."""

    def contract(self) -> Contracted:
        inputs, outputs, slices = self.parts()
        middles: list[Tensor] = []
        for layer in slices.unbind():
            attention, fc1, fc2 = layer.split(LAYER_SLICES)
            middles += [*attention.unbind(), fc1.flatten(0, 1), fc2.transpose(0, 1).flatten(1)]
        return Contracted(
            [inputs.T],
            dict.fromkeys(self.down_of, outputs * self.scale),
            middles=dict(zip(self.down_of, middles, strict=True)),
        )


class _TensorTrain(_Slices):
    """U, Σ and V are the three cores of a tensor train over input, slice and output."""

    def __init__(self, method: FacTTT, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__(method.scale, geometry)
        assert method.rank is not None
        hidden, rank, slices = geometry.hidden, method.rank, geometry.layers * sum(LAYER_SLICES)
        inputs, outputs = torch.empty(1, hidden, rank), torch.zeros(rank, hidden, 1)
        middles = torch.empty(rank, geometry.layers, sum(LAYER_SLICES), rank)
        _uniform(inputs, hidden, generator)
        _uniform(middles, rank, generator)
        _uniform(middles[:, :, -MLP_SLICES:], MLP_SLICES * rank, generator)
        cores = [nn.Parameter(core) for core in (inputs, middles.flatten(1, 2), outputs)]
        self.tensor = TTTensor(cores, shape=(hidden, slices, hidden), rank=(1, rank, rank, 1))

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        inputs, middles, outputs = self.tensor.factors
        return inputs[0], outputs[..., 0].T, middles.permute(1, 2, 0).unflatten(0, (self.layers, -1))


class _Tucker(_Slices):
    """C, U, V and P are a Tucker tensor over input, output and slice."""

    def __init__(self, method: FacTTK, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__(method.scale, geometry)
        assert method.rank is not None
        self.interleaved = method.mlp_slices == "reference"
        hidden, rank, slices = geometry.hidden, method.rank, geometry.layers * sum(LAYER_SLICES)
        core, mixture = torch.empty(rank, rank, rank), torch.empty(slices, rank)
        inputs, outputs = torch.empty(hidden, rank), torch.zeros(hidden, rank)
        _uniform(inputs, hidden, generator)
        nn.init.xavier_uniform_(core, generator=generator)
        nn.init.xavier_uniform_(mixture, generator=generator)
        factors = [nn.Parameter(factor) for factor in (inputs, outputs, mixture)]
        self.tensor = TuckerTensor(
            nn.Parameter(core), factors, shape=(hidden, hidden, slices), rank=(rank,) * 3
        )

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        inputs, outputs, mixture = self.tensor.factors
        mixed = (self.tensor.core @ mixture.T).movedim(-1, 0).unflatten(0, (self.layers, -1))
        attention, fc1, fc2 = mixed.split(LAYER_SLICES, dim=1)
        if self.interleaved:
            fc1, fc2 = _interleaved(fc1), _interleaved(fc2)
        return inputs, outputs, torch.cat([attention.mT, fc1.mT, fc2], dim=1)


def _interleaved(mixed: Tensor) -> Tensor:
    """(L, slice, r, r) joined along the last rank as (rank, slice), then cut as (slice, rank)."""
    return mixed.movedim(1, -1).flatten(-2).unflatten(-1, mixed.shape[1:3]).movedim(-2, 1)


def _uniform(tensor: Tensor, fan_in: int, generator: torch.Generator) -> None:
    """The start of a torch linear layer's weight."""
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(tensor, -bound, bound, generator=generator)
