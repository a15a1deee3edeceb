"""FacT (AAAI 2023, arXiv 2212.03145): the updates of all projections are slices of one tensor."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tensorbench.methods.backbone import GATED_PROJECTIONS, MLP, Geometry
from tensorbench.methods.lowrank import Contracted, DropoutAt, Matrix, SharedEnds, StackedMethod
from tensorbench.methods.sizes import OneRank
from tensorbench.methods.slices import by_site, joined, mlp_slices


class _FacT(OneRank, StackedMethod):
    """y = W·x + b + scale · V·dropout(Σ·U·x), with U and V shared by the whole model.

    The updates of the MLP's projections consist of slices of hidden × hidden. A layer has S slices (12 if the
    MLP is four times as wide as hidden and has no gate), each with its own Σ. Start: V zero, U as torch's
    linear layer (uniform in ±1/√hidden).

    Published scales (reference code, VTAB-1k, with the rank in brackets): TT 0.01 (8) for DTD and 100 (8) for
    EuroSAT, TK 0.01 (16) for DTD and 100 (32) for EuroSAT.
    """

    projections: ClassVar[tuple[str, ...]] = GATED_PROJECTIONS
    dropout_at: ClassVar[DropoutAt] = "before_up"
    #: The learning rate in the reference code for VTAB-1k.
    published_lr: ClassVar[float | None] = 1e-3

    #: The probability of dropout on Σ·U·x, which has width `rank` (for gate and fc1, per slice). 0.1 in the
    #: reference code.
    dropout: float = Field(0.1, ge=0.0, lt=1.0)

    def ends(self, geometry: Geometry) -> int:
        """Returns the number of entries of U and V together at rank 1."""
        return geometry.hidden + self.slices(geometry).width


class FacTTT(_FacT):
    """FacT in the tensor-train form: each slice has its own free Σ.

    Σ starts like the linear layers of the reference code: uniform in ±1/√rank, and for fc2 in ±1/√(n·rank),
    because the reference code has a single linear layer for the n slices of fc2.
    """

    name: ClassVar[str] = "fact_tt"
    title: ClassVar[str] = "FacT-TT"

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Returns the larger of hidden size and attention width, since no factor has more rows."""
        return (self.slices(geometry).width,)

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts (d + max(d, H·h))·r + S·L·r² for S slices of a layer, in the letters of `Geometry`."""
        return self.ends(geometry) * rank + len(self.slices(geometry)) * geometry.layers * rank**2

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> _TensorTrain:
        return _TensorTrain(self, geometry, generator)


class FacTTK(_FacT):
    """FacT in the Tucker form: each Σ is a mixture of the matrices C[:, :, k] of one core C.

    The mixtures are C ×₃ P, where P has the weights of every mixture. C and P start xavier-uniform. Σ is the
    transposed mixture, except for fc2, where Σ is the mixture itself.
    """

    name: ClassVar[str] = "fact_tk"
    title: ClassVar[str] = "FacT-TK"
    has_core: ClassVar[bool] = True

    #: `paper`: each slice of fc1 and fc2 has its own mixture. `reference`: as in the reference code, which
    #: flattens the four mixtures (r, r, 4) to (r, 4·r) without a permute. Column i of mixture s is then in
    #: column i · 4 + s, but the code reads column s · r + i. So every slice has columns of all four mixtures.
    mlp_slices: Literal["paper", "reference"] = "paper"

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Returns the largest mode: the hidden size, the attention width, or the number of all slices."""
        slices = self.slices(geometry)
        return (max(slices.width, len(slices) * geometry.layers),)

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts (d + max(d, H·h) + S·L)·r + r³ for S slices of a layer, in the letters of `Geometry`."""
        return (self.ends(geometry) + len(self.slices(geometry)) * geometry.layers) * rank + rank**3

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> _Tucker:
        return _Tucker(self, geometry, generator)


class _Slices(SharedEnds):
    @abstractmethod
    def parts(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Returns U (d, r), V (max(d, H·h), r), and each projection's Σ (layers, slices, r out, r in)."""

    def contract(self) -> Contracted:
        inputs, outputs, sigmas = self.parts()
        downs, ups = [inputs.T], [outputs * self.scale]
        if self.turned:
            downs.append(outputs[: self.turned].T)
            ups.append(inputs * self.scale)
            sigmas["output"] = sigmas["output"].mT
        entries = {name: joined(name, sigma) for name, sigma in sigmas.items()}
        return Contracted(
            downs,
            {site: ups[down] for site, down in self.down_of.items()},
            middles={site: Matrix(sigma) for site, sigma in by_site(entries).items()},
        )


class _TensorTrain(_Slices):
    """U, Σ and V as the three cores of a tensor train over input, slice and output."""

    def __init__(self, method: FacTTT, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__(method, geometry)
        hidden, rank, width = geometry.hidden, method.resolved_rank, self.slices.width
        inputs, outputs = torch.empty(1, hidden, rank), torch.zeros(rank, width, 1)
        middles = torch.empty(rank, geometry.layers, len(self.slices), rank)
        _uniform(inputs, hidden, generator)
        _uniform(middles, rank, generator)
        _uniform(self.slices.split(middles, 2)["fc2"], mlp_slices(geometry) * rank, generator)
        cores = [nn.Parameter(core) for core in (inputs, middles.flatten(1, 2), outputs)]
        shape = (hidden, geometry.layers * len(self.slices), width)
        from tltorch import TTTensor

        self.tensor = TTTensor(cores, shape=shape, rank=(1, rank, rank, 1))

    def parts(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        inputs, middles, outputs = self.tensor.factors
        sigmas = middles.permute(1, 2, 0).unflatten(0, (self.layers, -1))
        return inputs[0], outputs[..., 0].T, self.slices.split(sigmas, 1)


class _Tucker(_Slices):
    """C as the core, and U, V and P as the factors, of a Tucker tensor over input, output and slice."""

    def __init__(self, method: FacTTK, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__(method, geometry)
        self.interleaved = method.mlp_slices == "reference"
        hidden, rank, width = geometry.hidden, method.resolved_rank, self.slices.width
        slices = geometry.layers * len(self.slices)
        core, mixture = torch.empty(rank, rank, rank), torch.empty(slices, rank)
        inputs, outputs = torch.empty(hidden, rank), torch.zeros(width, rank)
        _uniform(inputs, hidden, generator)
        nn.init.xavier_uniform_(core, generator=generator)
        nn.init.xavier_uniform_(mixture, generator=generator)
        factors = [nn.Parameter(factor) for factor in (inputs, outputs, mixture)]
        from tltorch import TuckerTensor

        self.tensor = TuckerTensor(
            nn.Parameter(core), factors, shape=(hidden, width, slices), rank=(rank,) * 3
        )

    def parts(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        inputs, outputs, mixture = self.tensor.factors
        mixed = (self.tensor.core @ mixture.T).movedim(-1, 0).unflatten(0, (self.layers, -1))
        sigmas = self.slices.split(mixed, 1)
        if self.interleaved:
            # Each projection's mixtures (L, slice, r, r) in the order of the reference code.
            for name in sigmas.keys() & set(MLP):
                flat = sigmas[name].movedim(1, -1).flatten(-2)
                sigmas[name] = flat.unflatten(-1, sigmas[name].shape[1:3]).movedim(-2, 1)
        # Contiguous, since the rounding of a product depends on its operands' memory layout.
        turned = {name: sigma.mT.contiguous() for name, sigma in sigmas.items() if name != "fc2"}
        return inputs, outputs, sigmas | turned


def _uniform(tensor: Tensor, fan_in: int, generator: torch.Generator) -> None:
    """Draws a weight as torch's linear layer does: uniform in ±1/√fan_in."""
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(tensor, -bound, bound, generator=generator)
