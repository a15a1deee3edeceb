"""CaRA (ICML 2025): one CP tensor for query, key and value, and one for the output projection and the MLP."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tensorbench.methods.backbone import GATED_PROJECTIONS, SHARED_INPUT, Geometry
from tensorbench.methods.factorizations import cp_limit, khatri_rao
from tensorbench.methods.lowrank import Contracted, Diagonal, DropoutAt, Parametrisation, StackedMethod
from tensorbench.methods.sizes import OneRank
from tensorbench.methods.slices import CUT_INPUTS, CUT_OUTPUTS, Slices, by_site, cut_sites

#: The projections in the second tensor. Each has one trained bias shared by all layers.
BIASED = ("output", "gate", "fc1", "fc2")

if TYPE_CHECKING:
    from tltorch import CPTensor


class CaRA(OneRank, StackedMethod):
    """y = W·x + b + scale · (ΔW·x + c), where ΔW is a slice of a CP tensor with weights λ.

    The scale is not divided by the rank. The updates of query, key and value are a tensor (3·L, d, heads,
    head size). Its second mode is the input. Its last two modes are the output: channel j of head i is output
    i · head size + j.

    The updates of `output` and the MLP are a tensor (S·L, d, max(d, heads · head size)), where S is the
    number of slices of a layer. `output` has one slice, and a projection of the MLP may have several. For
    example, S is 9 if fc1 and fc2 have four slices each and there is no gate. The second mode is the output
    of `output`, gate and fc1, and the input of fc2. The third mode is the other side of these weights. c is a
    bias for each of `output`, gate, fc1 and fc2, shared by all layers.

    Start (reference code): first modes xavier-normal, second modes and biases zero, all other modes
    orthogonal. Published values (reference code, VTAB-1k, rank 32), with λ as (mean, standard deviation):
    scale 0.1 and λ (1.0, 0) for DTD, scale 10 and λ (1.08, 0.028) for EuroSAT.
    """

    name: ClassVar[str] = "cara"
    title: ClassVar[str] = "CaRA"
    projections: ClassVar[tuple[str, ...]] = GATED_PROJECTIONS
    #: The learning rate in the reference code for VTAB-1k.
    published_lr: ClassVar[float | None] = 1e-3

    #: The probability of dropout. The reference code has 0.1, but 0.3 for some data sets, such as DTD.
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    #: What dropout drops. `activation`: entries of the activation of width `rank`, which is cheap but not as
    #: published. `update`: entries of ΔW, as published. This is slow, since training then builds the dense
    #: update of every site.
    dropout_on: Literal["activation", "update"] = "activation"
    #: The mean and the standard deviation of the normal distribution from which the initial λ is drawn.
    lambda_mean: float = 1.0
    lambda_std: float = Field(0.0, ge=0.0)

    @property
    def dropout_at(self) -> DropoutAt:  # type: ignore[override]
        return "update" if self.dropout_on == "update" else "before_up"

    @property
    def idle(self) -> set[str]:
        """The options without effect: `dropout_on` if there is no dropout."""
        return set() if self.dropout else {"dropout_on"}

    def attention_shape(self, geometry: Geometry) -> tuple[int, ...]:
        matrices = len(SHARED_INPUT) * geometry.layers
        return (matrices, geometry.hidden, geometry.heads, geometry.head_size)

    def mlp_shape(self, geometry: Geometry) -> tuple[int, ...]:
        slices = Slices(BIASED, geometry)
        return (len(slices) * geometry.layers, geometry.hidden, slices.width)

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts r · (3·L + d + H + h + 1) + r · (S·L + d + max(d, H·h) + 1), plus the biases.

        S is the number of slices of a layer in the second tensor. `Geometry` explains the other letters.
        """
        modes = sum(self.attention_shape(geometry)) + 1 + sum(self.mlp_shape(geometry)) + 1
        return rank * modes + sum(geometry.shape(name)[0] for name in geometry.having(BIASED))

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Returns the rank that suffices for both tensors.

        For one tensor, it is the product of all modes but the largest.
        """
        return (max(cp_limit(self.attention_shape(geometry)), cp_limit(self.mlp_shape(geometry))),)

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        return _TwoTensors(self, geometry, generator)


class _TwoTensors(Parametrisation):
    def __init__(self, method: CaRA, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = method.scale
        self.geometry = geometry
        self.attention = _tensor(method, method.attention_shape(geometry), generator)
        self.mlp = _tensor(method, method.mlp_shape(geometry), generator)
        self.biases = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(geometry.shape(name)[0])) for name in geometry.having(BIASED)}
        )
        downs = dict.fromkeys(SHARED_INPUT, 0) | {"output": 1, "gate": 3, "fc1": 3, "fc2": 2}
        sites = geometry.sites(GATED_PROJECTIONS)
        self.down_of = {site: downs[site.projection] for site in sites}
        self.input_slices = cut_sites(sites, geometry, CUT_INPUTS)
        self.output_slices = cut_sites(sites, geometry, CUT_OUTPUTS)

    def contract(self) -> Contracted:
        slices, inputs, heads, channels = self.attention.factors
        split = khatri_rao(heads, channels)
        diagonals = Slices(SHARED_INPUT, self.geometry).split(
            self._weighted(slices, self.attention.weights), 1
        )
        slices, second, third = self.mlp.factors
        diagonals |= Slices(BIASED, self.geometry).split(self._weighted(slices, self.mlp.weights), 1)
        ups = dict.fromkeys(SHARED_INPUT, split) | dict.fromkeys(BIASED, second) | {"fc2": third}
        biases = {name: bias * self.scale for name, bias in self.biases.items()}
        width, hidden = self.geometry.attention_width, self.geometry.hidden
        return Contracted(
            [inputs.T, third[:width].T, second.T, third[:hidden].T],
            {site: ups[site.projection] for site in self.down_of},
            {site: biases[site.projection] for site in self.down_of if site.projection in BIASED},
            {site: Diagonal(entries) for site, entries in by_site(diagonals).items()},
        )

    def _weighted(self, slices: Tensor, weights: Tensor) -> Tensor:
        """Returns the factor of the slices, times λ and the scale, as (layers, slices of a layer, r)."""
        return (slices * (weights * self.scale)).unflatten(0, (self.geometry.layers, -1))


def _tensor(method: CaRA, shape: tuple[int, ...], generator: torch.Generator) -> CPTensor:
    rank = method.resolved_rank
    slices, second, *rest = (torch.zeros(size, rank) for size in shape)
    weights = torch.empty(rank)
    nn.init.xavier_normal_(slices, generator=generator)
    for factor in rest:
        nn.init.orthogonal_(factor, generator=generator)
    nn.init.normal_(weights, method.lambda_mean, method.lambda_std, generator=generator)
    factors = [nn.Parameter(factor) for factor in (slices, second, *rest)]
    from tltorch import CPTensor

    return CPTensor(nn.Parameter(weights), factors, shape=shape, rank=rank)
