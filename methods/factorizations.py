"""Factorised tensors: containers from tensorly-torch, our counts and our contractions.

The first mode is always the input. Contracting a tensor gives the pair that the forward uses: the
input factor (r, n1), and everything else multiplied out, (n2, ..., nN, r).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from tltorch import TuckerTensor
from tltorch.factorized_tensors.core import FactorizedTensor
from torch import Tensor, nn

Init = Literal["orthogonal", "normal", "kaiming_uniform"]


def start(factor: Tensor, init: Init, generator: torch.Generator) -> None:
    """Fills a factor in place: orthonormal columns (rows where wide), N(0, 1), or torch's uniform start."""
    if init == "orthogonal":
        nn.init.orthogonal_(factor, generator=generator)
    elif init == "normal":
        nn.init.normal_(factor, generator=generator)
    else:
        nn.init.kaiming_uniform_(factor, a=math.sqrt(5), generator=generator)


class Factorization(Protocol):
    """One way to factorise a tensor. Stateless; the container holds the parameters."""

    def count(self, shape: Sequence[int], ranks: Sequence[int]) -> int: ...

    def build(
        self, shape: Sequence[int], ranks: Sequence[int], init: Init, generator: torch.Generator
    ) -> FactorizedTensor:
        """A started container whose tensor is zero."""
        ...

    def contract(self, tensors: Sequence[FactorizedTensor]) -> tuple[Tensor, Tensor]:
        """(T, r, n1) and (T, n2, ..., nN, r) of T tensors of one shape."""
        ...


class Tucker:
    """Core r1 × … × rN and a factor n × r for each mode (Tucker 1966). A rank may exceed its mode."""

    def count(self, shape: Sequence[int], ranks: Sequence[int]) -> int:
        return sum(n * r for n, r in zip(shape, ranks, strict=True)) + math.prod(ranks)

    def build(
        self, shape: Sequence[int], ranks: Sequence[int], init: Init, generator: torch.Generator
    ) -> FactorizedTensor:
        factors = [nn.Parameter(torch.empty(n, r)) for n, r in zip(shape, ranks, strict=True)]
        for factor in factors:
            start(factor, init, generator)
        core = nn.Parameter(torch.zeros(*ranks))
        return TuckerTensor(core, factors, shape=tuple(shape), rank=tuple(ranks))

    def contract(self, tensors: Sequence[FactorizedTensor]) -> tuple[Tensor, Tensor]:
        order = len(tensors[0].shape)
        rest = _stack([tensor.core for tensor in tensors])
        # The last mode first: modes are ordered large to small, so the tensor grows as late as it can.
        for mode in range(order - 1, 0, -1):
            factor = _stack([tensor.factors[mode] for tensor in tensors])
            rest = _mode_product(rest, factor, mode + 1)
        inputs = _stack([tensor.factors[0] for tensor in tensors])
        return inputs.transpose(1, 2), rest.movedim(1, -1)


FACTORIZATIONS: dict[str, Factorization] = {"tucker": Tucker()}


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


def _mode_product(tensor: Tensor, factor: Tensor, dim: int) -> Tensor:
    """Multiplies dimension `dim` of (T, ...) by (T, n, r): r becomes n."""
    flat = tensor.movedim(dim, -1)
    product = flat.flatten(1, -2) @ factor.transpose(1, 2)
    return product.unflatten(1, flat.shape[1:-1]).movedim(-1, dim)
