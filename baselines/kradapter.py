"""KRAdapter (ICCV 2025, arXiv 2508.00230): each update is a Khatri-Rao product of full rank."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.added import AddedAdapter, Addition
from methods.backbone import Backbone, Geometry
from methods.sizes import AnyTargets, Targeted, Unsized

#: The scale, fixed in the reference code.
SCALE = 2.0
#: Kaiming-uniform with a = 5, i.e. ±√(6/26)/√fan_in (reference code; probably √5 was intended).
BOUND = math.sqrt(6 / 26)


class KRAdapter(Targeted, Unsized):
    """y = W·x + b + 2·P·x, with P[p, (a, b)] = V[p, a]·U[p, b] and p on the shorter side of W.

    U (shorter, r) has r = ⌊√shorter⌋ columns, and V (shorter, r′) has the fewest with r·r′ ≥ longer; P is cut
    to the longer side. The size follows from the weight, and no budget sets it. If the output is the longer
    side, the update is 2·Pᵀ. Start: U zero, V kaiming-uniform. The update has full rank and is built once per
    forward, as in the reference code, since no cheaper product gives it. There is no dropout.
    """

    name: ClassVar[str] = "kradapter"
    title: ClassVar[str] = "KRAdapter"
    not_low_rank: ClassVar[str] = "KRAdapter's update has full rank"

    targets: AnyTargets = "qv"

    def count(self, geometry: Geometry) -> int:
        """Counts shorter · (r + r′) for every site."""
        return geometry.layers * sum(
            min(shape) * sum(columns(*shape)) for shape in self.adapted(geometry).values()
        )

    def put(self, backbone: Backbone, generator: torch.Generator) -> AddedAdapter:
        return AddedAdapter(backbone, self, lambda _, base: _Product(tuple(base.weight.shape), generator))


def columns(out: int, in_: int) -> tuple[int, int]:
    """Returns the numbers of columns r and r′ for a weight (out, in)."""
    r = math.isqrt(min(out, in_))
    return r, math.ceil(max(out, in_) / r)


class _Product(Addition):
    def __init__(self, shape: tuple[int, ...], generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        shorter, (r, r_prime) = min(shape), columns(*shape)
        self.U = nn.Parameter(torch.zeros(shorter, r))
        bound = BOUND / math.sqrt(r_prime)
        self.V = nn.Parameter(torch.empty(shorter, r_prime).uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out, in_ = self.shape
        product = (self.V.unsqueeze(2) * self.U.unsqueeze(1)).flatten(1)[:, : max(out, in_)] * SCALE
        return F.linear(x, product if out <= in_ else product.T)
