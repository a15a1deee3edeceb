"""Ranks that a training cuts: when, to how many parameters, and which ranks go."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

from pydantic import Field, model_validator

from methods.errors import UserError, shown
from methods.validation import Frozen

Ranks = tuple[int, ...]


class Cuts(Frozen):
    """A training begins with more parameters than the budget, and cuts ranks at a few steps until it is met.

    Cuts are spaced evenly from `first` to `last`, both shares of the training's steps; a single one is at
    `last`. Up to the first is the warm-up, after the last the adapter has its final ranks. After cut i of n
    the parameters are at most final + (start - final) · (1 - i/n)³, which is AdaLoRA's path (arXiv
    2303.10512, eq. 12). That a path, and these defaults, suit tensors is our choice.
    """

    #: The parameters at the start, as a multiple of those at the end.
    start: float = Field(1.5, gt=1, le=100)
    #: How often ranks are cut.
    times: int = Field(3, ge=1, le=100)
    #: When, as shares of the steps.
    first: float = Field(0.25, gt=0, lt=1)
    last: float = Field(0.6, gt=0, lt=1)

    @model_validator(mode="after")
    def _first_is_first(self) -> Cuts:
        if self.times > 1 and self.first >= self.last:
            raise ValueError(
                f"first: should be below last, which is {self.last:g}, both shares of the steps "
                f"(got {self.first:g})"
            )
        return self

    def __str__(self) -> str:
        when = f"{self.first:g} to {self.last:g}" if self.times > 1 else f"{self.last:g}"
        return f"{self.times} from {self.start:g}× at {when}"

    def steps(self, steps: int) -> tuple[int, ...]:
        """After which of a training's steps, counted from 1, ranks are cut.

        Raises UserError where two cuts would fall on one step, or none is left after the last.
        """
        gap = (self.last - self.first) / (self.times - 1) if self.times > 1 else 0.0
        shares = (self.last - gap * i for i in reversed(range(self.times)))
        found = tuple(round(share * steps) for share in shares)
        if not all(one < other for one, other in itertools.pairwise((0, *found, steps))):
            raise UserError(
                f"cuts: {self} would come after the steps {shown(list(found))} of {steps}; each should come "
                "after another one, from the first to the last but one: train longer, or cut less often"
            )
        return found

    def budgets(self, peak: int, final: int) -> tuple[int, ...]:
        """The most parameters that each cut may leave."""
        left = (1 - i / self.times for i in range(1, self.times + 1))
        return tuple(final + math.floor((peak - final) * share**3) for share in left)

    def start_ranks(
        self, ranks: Ranks, limits: Sequence[int], count: Callable[[Ranks], int], label: str
    ) -> Ranks:
        """The ranks of the start: the final budget's in proportion, as large as `start` allows.

        None is above its limit, and one at least is above what it is in `ranks`. Raises UserError where the
        limits allow none of that: there would be nothing to cut.
        """
        most, found = self.start * count(ranks), ranks
        while growing := [i for i, rank in enumerate(found) if rank < limits[i]]:
            factor = min(Fraction(found[i] + 1, ranks[i]) for i in growing)
            larger = tuple(
                max(now, min(limit, math.floor(factor * rank)))
                for now, limit, rank in zip(found, limits, ranks, strict=True)
            )
            if found != ranks and count(larger) > most:
                break
            found = larger
        if found == ranks:
            raise UserError(
                f"{label}: cuts: a training should start above the final budget, and no rank of "
                f"{', '.join(map(str, ranks))} can be larger (limits are {', '.join(map(str, limits))}); "
                "give a smaller budget, or no cuts"
            )
        return found


def kept_ranks(
    spectra: Sequence[Sequence[float]],
    count: Callable[[Ranks], int],
    limits: Callable[[Ranks], Ranks],
    budget: int,
) -> Ranks:
    """How many of each descending list of singular values to keep within a budget of parameters.

    Again and again the list loses its last value that costs the least: whose square, which is the most that
    the tensor loses of its squared norm by it, is the smallest for each parameter that is saved. A rank that
    the others leave no room for (`limits` says how much they do) costs nothing and goes first. When the
    budget is met, what it still has room for is taken back, the value with the largest square for each
    parameter first. So no value that this call dropped would fit. A rank is never below 1.
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
