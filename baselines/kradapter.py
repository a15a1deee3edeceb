"""KRAdapter (ICCV 2025, arXiv 2508.00230): each update is a Khatri-Rao product of full rank."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorbench.methods.added import AddedAdapter, Addition
from tensorbench.methods.backbone import Backbone, Geometry
from tensorbench.methods.sizes import AnyTargets, Targeted, Unsized

#: The scale, fixed in the reference code.
SCALE = 2.0
#: V is uniform in ±BOUND/√fan_in at the start. This is kaiming-uniform with a = 5, as in the reference code;
#: probably √5 was intended.
BOUND = math.sqrt(6 / 26)


class KRAdapter(Targeted, Unsized):
    """y = W·x + b + 2·P·x, with P[p, (a, b)] = V[p, a]·U[p, b] and p on the shorter side of W.

    Let shorter and longer be the sizes of the two sides of W. U is (shorter, r) with r = ⌊√shorter⌋. V is
    (shorter, r′) with the smallest r′ for which r·r′ ≥ longer. P is truncated to `longer` columns. If the
    output is the longer side, the update is 2·Pᵀ. So the size follows from the weight, and no budget sets it.

    Start: U zero, V kaiming-uniform. The update has full rank. As in the reference code, it is built once per
    forward, since no cheaper product gives it. There is no dropout.
    """

    name: ClassVar[str] = "kradapter"
    title: ClassVar[str] = "KRAdapter"
    not_low_rank: ClassVar[str] = "KRAdapter's update has full rank"

    targets: AnyTargets = "qv"

    def count(self, geometry: Geometry) -> int:
        """Counts shorter · (r + r′), summed over all sites."""
        return geometry.layers * sum(
            min(shape) * sum(columns(*shape)) for shape in self.adapted(geometry).values()
        )

    def put(self, backbone: Backbone, generator: torch.Generator) -> AddedAdapter:
        return AddedAdapter(backbone, self, lambda base: _Product(tuple(base.weight.shape), generator))


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
