"""Cutting ranks during training: the schedule, the choice of ranks, and the truncation of tensors.

A tensor is first orthogonalised. Then the singular values of its unfoldings equal those of small matrices,
such as the unfoldings of a Tucker core. So only small matrices are decomposed, never one as large as the
tensor. All computations are in float64.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from tensorbench.methods.errors import UserError, not_begun, shown
from tensorbench.methods.validation import Frozen

if TYPE_CHECKING:
    from tltorch import TuckerTensor

Ranks = tuple[int, ...]

#: The keys of AdamW's moments in a parameter's optimizer state. A cut transforms no other optimizer's state.
FIRST, SECOND = "exp_avg", "exp_avg_sq"


class Cuts(Frozen):
    """A schedule that starts with more parameters than the budget and cuts ranks until the budget is met.

    Cuts are spaced evenly from `first` to `last`. A single cut is at `last`. After the last cut the adapter
    has its final ranks. After cut i of n there are at most final + (start - final) · (1 - i/n)³ parameters,
    where start and final are the numbers of parameters before the first cut and after the last. This is
    AdaLoRA's schedule (arXiv 2303.10512, eq. 12). Using it for tensors, and the defaults, are our choices.
    """

    #: The largest number of parameters at the start, as a multiple of the number at the end.
    start: float = Field(1.5, gt=1, le=100)
    #: The number of cuts.
    times: int = Field(3, ge=1, le=100)
    #: The steps of the first and last cut, as fractions of the number of steps.
    first: float = Field(0.25, gt=0, lt=1)
    last: float = Field(0.6, gt=0, lt=1)

    @model_validator(mode="after")
    def _first_is_first(self) -> Cuts:
        if self.times > 1 and self.first >= self.last:
            raise ValueError(
                f"first: {self.first:g} should be below last, which is {self.last:g}, both shares of the "
                "steps"
            )
        return self

    def __str__(self) -> str:
        when = f"{self.first:g} to {self.last:g}" if self.times > 1 else f"{self.last:g}"
        return f"{self.times} from {self.start:g}× at {when}"

    def steps(self, steps: int) -> tuple[int, ...]:
        """Returns the steps after which ranks are cut, counted from 1, for a training of `steps` steps.

        Raises UserError if the training is too short: the first cut would come before any step, two cuts
        would fall on one step, or no step would follow the last cut.
        """
        gap = (self.last - self.first) / (self.times - 1) if self.times > 1 else 0.0
        shares = (self.last - gap * i for i in reversed(range(self.times)))
        places = tuple(round(share * steps) for share in shares)
        if not all(first < second for first, second in itertools.pairwise((0, *places, steps))):
            raise UserError(
                f"cuts: {self} would come after the steps {shown(list(places))} of {steps}; each should come "
                "after another one, from the first to the last but one: train longer, or cut less often"
            )
        return places

    def budgets(self, peak: int, final: int) -> tuple[int, ...]:
        """Returns the largest number of parameters after each cut.

        `peak` is the number before the first cut, and `final` is the largest number after the last cut.
        """
        left = (1 - i / self.times for i in range(1, self.times + 1))
        return tuple(final + math.floor((peak - final) * share**3) for share in left)

    def start_ranks(
        self, ranks: Ranks, limits: Sequence[int], count: Callable[[Ranks], int], label: str
    ) -> Ranks:
        """Returns the ranks at the start, given the final `ranks`.

        The ranks grow in proportion to `ranks`, as far as `start` and `limits` allow. At least one rank is
        larger than in `ranks`, even if `start` is then exceeded. Raises UserError if `limits` allow no larger
        rank, since there would be nothing to cut.
        """
        most, larger_ranks = self.start * count(ranks), ranks
        while growing := [i for i, rank in enumerate(larger_ranks) if rank < limits[i]]:
            factor = min(Fraction(larger_ranks[i] + 1, ranks[i]) for i in growing)
            larger = tuple(
                max(now, min(limit, math.floor(factor * rank)))
                for now, limit, rank in zip(larger_ranks, limits, ranks, strict=True)
            )
            if larger_ranks != ranks and count(larger) > most:
                break
            larger_ranks = larger
        if larger_ranks == ranks:
            raise UserError(
                f"{label}: cuts: training should start above the final budget, but no rank of "
                f"{', '.join(map(str, ranks))} can be larger (limits are {', '.join(map(str, limits))}); "
                "give a smaller budget, or no cuts"
            )
        return larger_ranks


def kept_ranks(
    spectra: Sequence[Sequence[float]],
    count: Callable[[Ranks], int],
    limits: Callable[[Ranks], Ranks],
    budget: int,
) -> Ranks:
    """Chooses how many singular values of each list to keep, so that `count` is within the budget.

    `spectra` has a descending list for each rank. Each round drops the last value of one list. Of the lists'
    last values, it drops the value with the smallest square per saved parameter, since the square bounds the
    loss of squared norm. `limits` returns the largest useful ranks, given all ranks. Values beyond these
    limits are dropped before all others, which loses nothing. In the end, dropped values are restored while
    the budget has room, those with the largest square per parameter first. Every list keeps at least one
    value, even if `count` then exceeds the budget.
    """
    ranks = tuple(map(len, spectra))

    def beside(of: Ranks, index: int, step: int) -> Ranks:
        return (*of[:index], of[index] + step, *of[index + 1 :])

    def worth(smaller: Ranks, larger: Ranks, index: int) -> float:
        return spectra[index][larger[index] - 1] ** 2 / (count(larger) - count(smaller))

    while True:
        room = limits(ranks)
        over = [i for i, rank in enumerate(ranks) if rank > room[i]]
        if not over and count(ranks) <= budget:
            break
        fewer = {i: beside(ranks, i, -1) for i in over or range(len(ranks)) if ranks[i] > 1}
        if not fewer:
            break
        ranks = fewer[min(fewer, key=lambda i: worth(fewer[i], ranks, i))]
    while True:
        room = limits(ranks)
        more = {
            i: larger
            for i, rank in enumerate(ranks)
            if rank < min(room[i], len(spectra[i])) and count(larger := beside(ranks, i, 1)) <= budget
        }
        if not more:
            return ranks
        ranks = more[max(more, key=lambda i: worth(ranks, more[i], i))]


@dataclass(frozen=True)
class CutParameter:
    """A parameter's value after a cut, and the map from its old gradients to new gradients.

    For each axis in `axes`, gradients are multiplied along this axis by a matrix (new size, old size).
    """

    parameter: nn.Parameter
    value: Tensor
    axes: Mapping[int, Tensor]

    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        """Sets the value, drops the gradient, and transforms AdamW's moments.

        The first moment is mapped like a gradient. The second moment is mapped by the matrices with squared
        entries. This is exact if the entries of a gradient are uncorrelated, as Adam assumes. If the moments
        were reset instead, training would take full steps again in the middle of its schedule. The state of
        other optimizers is dropped.
        """
        _replace_value(self.parameter, self.value.to(self.parameter).contiguous())
        state = optimizer.state.get(self.parameter)
        if not state:
            return
        if set(state) != {"step", FIRST, SECOND}:
            del optimizer.state[self.parameter]
            return
        for name, power in ((FIRST, 1), (SECOND, 2)):
            moment = state[name].double()
            for axis, matrix in self.axes.items():
                moment = _times(matrix**power, moment, axis)
            state[name] = moment.to(state[name]).contiguous()


#: The singular values of tensors, and a function that truncates the tensors to smaller ranks. The values are
#: a descending vector (r,) for each rank. The function keeps the largest of them and returns new parameters.
Spectrum = tuple[list[Tensor], Callable[[Ranks], list[CutParameter]]]


class Cuttable(ABC):
    """One or several factorised tensors of equal shape and equal ranks, which can be cut to smaller ranks."""

    @property
    @abstractmethod
    def ranks(self) -> Ranks:
        """The tensors' current ranks."""

    @abstractmethod
    def shapes(self, ranks: Ranks) -> dict[nn.Parameter, tuple[int, ...]]:
        """Returns the shape that each parameter would have with these ranks."""

    @abstractmethod
    def ranks_of(self, shapes: Sequence[tuple[int, ...]]) -> Ranks | None:
        """Returns the ranks with which the parameters would have these shapes. None if no ranks fit.

        The shapes are in the order of the parameters in `self.shapes`.
        """

    @abstractmethod
    def room(self, ranks: Ranks) -> Ranks:
        """Returns the largest useful value of each rank, given the other ranks.

        A larger rank would only add singular values of zero.
        """

    @abstractmethod
    def spectrum(self) -> Spectrum:
        """Returns the tensors' current singular values, and the function that truncates the tensors."""

    def resized(self) -> None:  # noqa: B027 - most keep no note of their shapes
        """Updates the ranks that containers store, after their parameters have changed shape."""


class TuckerTensors(Cuttable):
    """Tucker tensors with common ranks.

    The i-th singular value of a mode is the root of the sum of squares of the tensors' i-th singular values.
    """

    def __init__(self, tensors: Sequence[TuckerTensor]) -> None:
        self.tensors = tensors

    @property
    def ranks(self) -> Ranks:
        return tuple(self.tensors[0].core.shape)

    def shapes(self, ranks: Ranks) -> dict[nn.Parameter, tuple[int, ...]]:
        shapes: dict[nn.Parameter, Ranks] = {}
        for tensor in self.tensors:
            shapes[tensor.core] = ranks
            pairs = zip(tensor.factors, ranks, strict=True)
            shapes |= {factor: (len(factor), rank) for factor, rank in pairs}
        return shapes

    def ranks_of(self, shapes: Sequence[tuple[int, ...]]) -> Ranks | None:
        return shapes[0] if len(shapes[0]) == len(self.ranks) else None

    def room(self, ranks: Ranks) -> Ranks:
        sizes = self.tensors[0].shape
        return tuple(min(size, math.prod(ranks) // rank) for size, rank in zip(sizes, ranks, strict=True))

    def spectrum(self) -> Spectrum:
        tensors = [_OrthogonalTucker(tensor) for tensor in self.tensors]
        values = [
            _padded(torch.stack([tensor.values[mode] for tensor in tensors]).square().sum(0).sqrt(), rank)
            for mode, rank in enumerate(self.ranks)
        ]
        return values, lambda ranks: [change for tensor in tensors for change in tensor.cut(ranks)]

    def resized(self) -> None:
        for tensor in self.tensors:
            tensor.rank = tuple(tensor.core.shape)


class _OrthogonalTucker:
    """The HOSVD of a Tucker tensor (De Lathauwer et al. 2000).

    It consists of orthonormal factors, and of the singular vectors and values of the core's unfoldings.
    """

    def __init__(self, tensor: TuckerTensor) -> None:
        self.tensor = tensor
        self.core = tensor.core.detach().double()
        #: For every factor: an orthonormal basis (n, q), the factor in this basis (q, r), and the RMS norm of
        #: the factor's columns.
        self.bases, self.inside, self.sizes = [], [], []
        for mode, parameter in enumerate(tensor.factors):
            factor = parameter.detach().double()
            basis, inside = torch.linalg.qr(factor)
            self.core = _times(inside, self.core, mode)
            self.bases.append(basis)
            self.inside.append(inside)
            self.sizes.append(_size(factor, factor.shape[1]))
        svds = [
            torch.linalg.svd(self.core.movedim(mode, 0).flatten(1), full_matrices=False)
            for mode in range(self.core.dim())
        ]
        self.vectors, self.values = [svd.U for svd in svds], [svd.S for svd in svds]

    def cut(self, ranks: Ranks) -> list[CutParameter]:
        core, carried_coreaxes, changes = self.core, {}, []
        for mode, rank in enumerate(ranks):
            kept, size = self.vectors[mode][:, :rank], self.sizes[mode]
            core = _times(kept.T / size, core, mode)
            carried_coreaxes[mode] = size * (torch.linalg.pinv(self.inside[mode]) @ kept).T
            changes.append(
                CutParameter(
                    self.tensor.factors[mode],
                    size * self.bases[mode] @ kept,
                    {1: kept.T @ self.inside[mode] / size},
                )
            )
        return [CutParameter(self.tensor.core, core, carried_coreaxes), *changes]


class TrainCores(Cuttable):
    """A tensor train of cores (r₋, n, r₊).

    The singular values of a bond are those of a matrix, the tensor unfolded at this bond: its rows are for
    the modes left of the bond, and its columns for the modes right of the bond.
    """

    def __init__(self, cores: Sequence[nn.Parameter]) -> None:
        self.cores = cores

    @property
    def ranks(self) -> Ranks:
        return tuple(core.shape[2] for core in self.cores[:-1])

    def shapes(self, ranks: Ranks) -> dict[nn.Parameter, tuple[int, ...]]:
        ends = zip((1, *ranks), self.cores, (*ranks, 1), strict=True)
        return {core: (left, core.shape[1], right) for left, core, right in ends}

    def ranks_of(self, shapes: Sequence[tuple[int, ...]]) -> Ranks | None:
        return tuple(shape[2] for shape in shapes[:-1]) if all(len(s) == 3 for s in shapes) else None

    def room(self, ranks: Ranks) -> Ranks:
        sizes = [core.shape[1] for core in self.cores]
        left, right = (1, *ranks), (*ranks, 1)
        return tuple(
            min(left[bond] * sizes[bond], sizes[bond + 1] * right[bond + 1]) for bond in range(len(ranks))
        )

    def spectrum(self) -> Spectrum:
        train = _OrthogonalTrain(self.cores)
        return train.values, train.cut


class _OrthogonalTrain:
    """A tensor train made orthogonal from the left. `cut` truncates it bond by bond from the right.

    This is Oseledets 2011, algorithm 2.
    """

    def __init__(self, cores: Sequence[nn.Parameter]) -> None:
        self.cores = cores
        values = [core.detach().double() for core in cores]
        #: The left-orthonormal cores, and the triangular factor (q, r) at the right bond of each core.
        self.orthogonal, self.rests = [], [values[0].new_ones(1, 1)]
        for value in values:
            carried_core = _times(self.rests[-1], value, 0)
            basis, rest = torch.linalg.qr(carried_core.flatten(0, 1))
            self.orthogonal.append(basis.unflatten(0, carried_core.shape[:2]))
            self.rests.append(rest)
        self.sizes = [_size(value, value.shape[0]) for value in values]
        reversed_values, right = [], values[0].new_ones(1, 1)
        for bond in range(len(values) - 1, 0, -1):
            right = torch.linalg.qr(_times(right.T, values[bond], 2).flatten(1).T).R.T
            singular = torch.linalg.svdvals(self.rests[bond] @ right)
            reversed_values.append(_padded(singular, values[bond].shape[0]))
        self.values = reversed_values[::-1]

    def cut(self, ranks: Ranks) -> list[CutParameter]:
        """Truncates the bonds. The first core absorbs the tensor's norm.

        In every other core, the RMS norm of the slices along the left rank stays the same.
        """
        changes: list[CutParameter] = []
        carried, after = self.rests[-1], self.rests[0].new_ones(1, 1)
        for index in range(len(self.cores) - 1, 0, -1):
            carried_core = _times(carried.T, self.orthogonal[index], 2)
            u, s, vh = torch.linalg.svd(carried_core.flatten(1), full_matrices=False)
            rank, size, rest = ranks[index - 1], self.sizes[index], self.rests[index]
            u, s, vh = u[:, :rank], s[:rank], vh[:rank]
            carried = u * s / size
            before = torch.linalg.pinv(rest) @ carried
            changes.append(
                CutParameter(
                    self.cores[index], size * vh.unflatten(1, carried_core.shape[1:]), {0: before.T, 2: after}
                )
            )
            after = torch.linalg.pinv(s.diag()) @ u.T @ rest * size
        first = _times(carried.T, self.orthogonal[0], 2)
        return [CutParameter(self.cores[0], first, {2: after}), *changes[::-1]]


@dataclass
class Cutting:
    """Cuts the ranks of one adapter during training, at the steps and to the budgets of a schedule."""

    cuts: Cuts
    tensor: Cuttable
    #: The mode or bond of each rank.
    names: Sequence[str]
    #: Counts the adapter's parameters for given ranks.
    count: Callable[[Ranks], int]
    #: The largest number of parameters at the end.
    final: int
    #: For the step of each future cut, the largest number of parameters after the cut. None until training
    #: has begun.
    _due: dict[int, int] | None = None

    def __post_init__(self) -> None:
        self._largest = self.tensor.ranks

    @property
    def settled(self) -> bool:
        return self.count(self.tensor.ranks) <= self.final

    def begin_training(self, steps: int) -> None:
        """Plans the cuts of a training run of `steps` steps. Raises UserError if the run is too short."""
        budgets = self.cuts.budgets(self.count(self.tensor.ranks), self.final)
        self._due = dict(zip(self.cuts.steps(steps), budgets, strict=True))

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Cuts ranks if a cut is due at this step, or was due at a step for which this was not called.

        Does nothing if a parameter is no longer finite. Raises UserError before `begin_training`.
        """
        if self._due is None:
            raise not_begun()
        budgets = [self._due.pop(due) for due in sorted(self._due) if due <= step]
        parameters = self.tensor.shapes(self.tensor.ranks)
        if not budgets or not all(bool(parameter.isfinite().all()) for parameter in parameters):
            return
        values, cut = self.tensor.spectrum()
        spectra = [singular.tolist() for singular in values]
        for change in cut(kept_ranks(spectra, self.count, self.tensor.room, budgets[-1])):
            change.apply(optimizer)
        self.tensor.resized()

    @torch.no_grad()
    def take_shapes(self, shapes: Mapping[nn.Parameter, tuple[int, ...]]) -> None:
        """Gives the parameters the shapes of a stored state, and zeros until that state is loaded.

        Does nothing if no ranks fit the shapes, or if a rank would be larger than at the start.
        """
        ranks = self.tensor.ranks_of([shapes[parameter] for parameter in self.tensor.shapes(self._largest)])
        if ranks is None or any(rank > most for rank, most in zip(ranks, self._largest, strict=True)):
            return
        expected = self.tensor.shapes(ranks)
        if any(shapes[parameter] != shape for parameter, shape in expected.items()):
            return
        for parameter, shape in expected.items():
            _replace_value(parameter, parameter.new_zeros(shape))
        self.tensor.resized()


def _replace_value(parameter: nn.Parameter, value: Tensor) -> None:
    """Gives a parameter a value of another shape, and drops its gradient.

    If a loss is still referenced, so is the autograd node that accumulates the parameter's gradient. This
    node remembers the old shape, and torch makes a new node only after a change of dtype or device. So the
    parameter gets the value in half precision first. No parameter has this dtype otherwise.
    """
    parameter.grad = None
    parameter.data = value.half()
    parameter.data = value


def _times(matrix: Tensor, tensor: Tensor, axis: int) -> Tensor:
    """Multiplies the tensor by a matrix (new size, old size) along an axis."""
    return torch.tensordot(matrix, tensor, dims=([1], [axis])).movedim(0, axis)


def _size(tensor: Tensor, vectors: int) -> float:
    """Returns the RMS norm of the vectors that make up a tensor, or 1 if all of them are zero.

    `vectors` is the number of these vectors.
    """
    return float(tensor.norm()) / math.sqrt(vectors) or 1.0


def _padded(values: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - len(values)))
