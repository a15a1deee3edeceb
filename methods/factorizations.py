"""The factorisations Tucker, CP and tensor train: their counts, initial values and contractions.

The parameters of a factorised tensor are held by a container of tensorly-torch. The first mode is always the
input. Contracting a tensor gives two results: the input factor as (r, n1), and the product of everything else
as (n2, ..., nN, r). The low-rank pairs of the forward are made from these two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor, nn

from tensorbench.methods.trains import bond_limits, core_shapes, train_count

if TYPE_CHECKING:
    # Imported only where a tensor is made, since it takes half a second, and a plan makes none.
    from tltorch.factorized_tensors.core import FactorizedTensor

Init = Literal["orthogonal", "normal", "kaiming_uniform"]


def fill(factor: Tensor, init: Init, std: float, generator: torch.Generator) -> None:
    """Draws the initial values of a factor in place.

    `orthogonal` gives orthonormal columns, or orthonormal rows if there are fewer rows than columns. `normal`
    draws with the standard deviation `std` (see `normal_std`). `kaiming_uniform` draws as torch's linear
    layer does.
    """
    if init == "orthogonal":
        nn.init.orthogonal_(factor, generator=generator)
    elif init == "normal":
        nn.init.normal_(factor, std=std, generator=generator)
    else:
        nn.init.kaiming_uniform_(factor, a=math.sqrt(5), generator=generator)


def normal_std(ranks: Sequence[int], parts: int) -> float:
    """Returns the standard deviation (1 / ∏ √r) ^ (1 / parts) for drawing factors and cores.

    If all `parts` factors and cores of a tensor are drawn with it, the tensor's entries have variance one.
    TensLoRA's reference code draws Tucker tensors (N + 1 parts for N modes) and CP tensors (N parts) this
    way. The reference code has no tensor train; applying the rule to the N cores of a train is our choice.
    """
    return math.prod(ranks) ** (-1 / (2 * parts))


def cp_limit(shape: Sequence[int]) -> int:
    """Returns a CP rank that suffices for every tensor of this shape.

    It is the product of all modes but the largest.
    """
    return math.prod(shape) // max(shape)


def khatri_rao(left: Tensor, right: Tensor) -> Tensor:
    """Returns the column-wise Kronecker product of `left` (…, m, r) and `right` (…, n, r).

    The result is (…, m·n, r). Its row i·n + j is the entrywise product of row i of `left` and row j of
    `right`.

    tensorly's function for this product is not used, because it also multiplies by a mask of ones: forward
    and backward took 1.3 times as long at rank 4, and 7 times at rank 256. Moreover, tensorly's function
    breaks if other code in the process sets tensorly's backend to numpy.
    """
    return (left.unsqueeze(-2) * right.unsqueeze(-3)).flatten(-3, -2)


class Tucker:
    """The Tucker factorisation (Tucker 1966): a core r1 × … × rN, and a factor n × r for each mode.

    The core starts at zero. A rank may exceed its mode's size.
    """

    def rank_names(self, modes: Sequence[str]) -> tuple[str, ...]:
        """Returns the name of each rank, given the names of the tensor's modes."""
        return tuple(modes)

    def rank_limits(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the largest useful ranks. They suffice to represent every tensor of this shape."""
        return tuple(shape)

    def count(self, shape: Sequence[int], ranks: Sequence[int]) -> int:
        """Counts the parameters of a tensor with this shape and these ranks."""
        return sum(n * r for n, r in zip(shape, ranks, strict=True)) + math.prod(ranks)

    def build(
        self, shape: Sequence[int], ranks: Sequence[int], init: Init, generator: torch.Generator
    ) -> FactorizedTensor:
        """Builds a container with initialised parameters.

        One of the parameters is all zeros, so that the tensor is zero.
        """
        factors = [nn.Parameter(torch.empty(n, r)) for n, r in zip(shape, ranks, strict=True)]
        for factor in factors:
            fill(factor, init, normal_std(ranks, len(shape) + 1), generator)
        core = nn.Parameter(torch.zeros(*ranks))
        from tltorch import TuckerTensor

        return TuckerTensor(core, factors, shape=tuple(shape), rank=tuple(ranks))

    def contract(self, tensors: Sequence[FactorizedTensor]) -> tuple[Tensor, Tensor]:
        """Contracts T tensors of one shape.

        Returns the input factors (T, r, n1), and the products of everything else (T, n2, ..., nN, r).
        """
        order = len(tensors[0].shape)
        rest = _stack([tensor.core for tensor in tensors])
        # From the last mode to the first: large modes come first, so that the product stays small longest.
        for mode in range(order - 1, 0, -1):
            factor = _stack([tensor.factors[mode] for tensor in tensors])
            # A product along this mode, which changes its size from r to n.
            flat = rest.movedim(mode + 1, -1)
            product = flat.flatten(1, -2) @ factor.transpose(1, 2)
            rest = product.unflatten(1, flat.shape[1:-1]).movedim(-1, mode + 1)
        inputs = _stack([tensor.factors[0] for tensor in tensors])
        return inputs.transpose(1, 2), rest.movedim(1, -1)


class CP:
    """The CP factorisation (Hitchcock 1927): a sum of R rank-one tensors, with a factor n × R for each mode.

    The weights of the rank-one tensors are fixed at one. The input factor starts at zero, as TensLoRA's
    reference code intends.
    """

    def rank_names(self, modes: Sequence[str]) -> tuple[str, ...]:
        return ("components",)

    def rank_limits(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (cp_limit(shape),)

    def count(self, shape: Sequence[int], ranks: Sequence[int]) -> int:
        return sum(shape) * ranks[0]

    def build(
        self, shape: Sequence[int], ranks: Sequence[int], init: Init, generator: torch.Generator
    ) -> FactorizedTensor:
        (rank,) = ranks
        factors = [nn.Parameter(torch.zeros(n, rank)) for n in shape]
        for factor in factors[1:]:
            fill(factor, init, normal_std(ranks, len(shape)), generator)
        from tltorch import CPTensor

        return CPTensor(torch.ones(rank), factors, shape=tuple(shape), rank=rank)

    def contract(self, tensors: Sequence[FactorizedTensor]) -> tuple[Tensor, Tensor]:
        factors = [_stack([tensor.factors[mode] for tensor in tensors]) for mode in range(tensors[0].order)]
        rest = factors[1]
        for factor in factors[2:]:
            # (T, ..., 1, R) times (T, 1, ..., n, R).
            rest = rest.unsqueeze(-2) * factor.unflatten(1, (1,) * (rest.dim() - 2) + (-1,))
        return factors[0].transpose(1, 2), rest


class TensorTrain:
    """The tensor train (Oseledets 2011): a chain of cores r₋ × n × r₊, one for each mode.

    The modes of the cores are, in this order, input, layer, projection, head, and finally head size or
    output. A tensor that lacks a mode has no core for it. The last core starts at zero. `init` draws each
    other core as a matrix (r₋·n, r₊).
    """

    def rank_names(self, modes: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"{left}-{right}" for left, right in pairwise(_chain(modes)))

    def rank_limits(self, shape: Sequence[int]) -> tuple[int, ...]:
        return bond_limits(_chain(shape))

    def count(self, shape: Sequence[int], ranks: Sequence[int]) -> int:
        return train_count(_chain(shape), ranks)

    def build(
        self, shape: Sequence[int], ranks: Sequence[int], init: Init, generator: torch.Generator
    ) -> FactorizedTensor:
        cores = [nn.Parameter(torch.zeros(core)) for core in core_shapes(_chain(shape), ranks)]
        for core in cores[:-1]:
            fill(core.detach().flatten(0, 1), init, normal_std(ranks, len(shape)), generator)
        from tltorch import TTTensor

        return TTTensor(cores, shape=tuple(_chain(shape)), rank=(1, *ranks, 1))

    def contract(self, tensors: Sequence[FactorizedTensor]) -> tuple[Tensor, Tensor]:
        first, *rest_cores = (
            _stack([tensor.factors[mode] for tensor in tensors]) for mode in range(tensors[0].order)
        )
        rest = rest_cores[-1].squeeze(-1)
        for core in reversed(rest_cores[:-1]):
            product = core.flatten(1, 2) @ rest.flatten(2)
            rest = product.unflatten(1, core.shape[1:3]).unflatten(-1, rest.shape[2:])
        # From (T, r, layer, ..., output) to (T, output, ..., layer, r).
        return first.squeeze(1).transpose(1, 2), rest.permute(0, *range(rest.dim() - 1, 0, -1))


Factorization = Tucker | CP | TensorTrain

#: The factorisations by name. They have no state: the tensor's container holds the parameters.
FACTORIZATIONS: dict[str, Factorization] = {"tucker": Tucker(), "cp": CP(), "tt": TensorTrain()}

Item = TypeVar("Item")


def _chain(modes: Sequence[Item]) -> list[Item]:
    """Orders modes for a tensor train: the first mode, then all other modes in reverse."""
    return [modes[0], *reversed(modes[1:])]


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))
