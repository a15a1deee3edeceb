"""The rank vectors of a method within a budget, and how Optuna draws from them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tensorbench.methods import Geometry, Method
from tensorbench.methods.errors import too_small

if TYPE_CHECKING:
    import optuna

Ranks = tuple[int, ...]


class RankSpace:
    """The rank vectors of a method that stay within a budget, a number of parameters.

    `modes` names the modes whose ranks vary. None: all modes. The other modes keep the ranks that they have
    in `method`. If several ranks vary, the space contains only maximal vectors: raising any varying rank by
    one would exceed the budget or the rank's limit. If `below` is true, or if only one rank varies, the space
    contains smaller vectors as well. Raises UserError for a budget below the smallest vector.
    """

    def __init__(
        self,
        method: Method,
        geometry: Geometry,
        budget: int,
        modes: Sequence[str] | None = None,
        *,
        below: bool = False,
    ) -> None:
        self.method, self.geometry, self.budget = method, geometry, budget
        self.names = method.rank_names
        #: The indices of the ranks that vary.
        self.free = [i for i, name in enumerate(self.names) if modes is None or name in modes]
        #: Whether vectors may leave part of the budget unused. Always true if only one rank varies.
        self.below = below or len(self.free) == 1
        self._fixed = {i: rank for i, rank in enumerate(method.size or ()) if i not in self.free}
        self.smallest = self._with({})
        if self.count(self.smallest) > budget:
            raise too_small(method.label, budget, self.count(self.smallest))
        full = method.rank_limits(geometry)
        #: The largest rank of each mode. A larger rank would gain nothing or exceed the budget.
        self.limits = tuple(
            self._fixed.get(i) or self._largest({}, i, full[i]) for i in range(len(self.names))
        )

    def count(self, ranks: Sequence[int]) -> int:
        return self.method.with_size(ranks).count(self.geometry)

    def _with(self, ranks: Mapping[int, int]) -> Ranks:
        """Returns the vector with these `ranks` by index. Other modes have their fixed rank, or else 1."""
        return tuple(ranks.get(i) or self._fixed.get(i) or 1 for i in range(len(self.names)))

    def _largest(self, ranks: Mapping[int, int], index: int, limit: int | None) -> int:
        """Returns the largest rank of the mode at `index` within the budget, at most `limit`.

        `ranks` are ranks of other modes, by index.
        """

        def fits(rank: int) -> bool:
            return self.count(self._with({**ranks, index: rank})) <= self.budget

        most = limit or self.budget
        fitting = 1
        while 2 * fitting <= most and fits(2 * fitting):
            fitting *= 2
        larger = range(fitting + 1, min(2 * fitting, most + 1))
        return fitting + bisect_left(larger, True, key=lambda rank: not fits(rank))

    def ranks(self, weights: Sequence[float], budget: int | None = None) -> Ranks:
        """Returns the largest vector within the budget whose ranks are in proportion to the weights.

        Proportional ranks are rounded down. Then the rank that is furthest below its proportion is raised by
        one, again and again, until the budget is used up. The budget holds at least the smallest vector.
        """
        budget = self.budget if budget is None else budget

        def at(scale: float) -> list[int]:
            return [
                self._fixed.get(i) or min(self.limits[i], max(1, math.floor(scale * weights[i])))
                for i in range(len(self.names))
            ]

        low, high = 0.0, max(2 * self.limits[i] / weights[i] for i in self.free)
        for _ in range(64):
            middle = (low + high) / 2
            if self.count(at(middle)) <= budget:
                low = middle
            else:
                high = middle
        ranks = at(low)
        while True:
            raised = [i for i in self.free if ranks[i] < self.limits[i]]
            raised = [i for i in raised if self.count(_raised(ranks, i)) <= budget]
            if not raised:
                return tuple(ranks)
            ranks = _raised(ranks, min(raised, key=lambda i: ranks[i] / weights[i]))

    def suggest(self, trial: optuna.trial.BaseTrial) -> Ranks:
        """Draws a vector with an Optuna trial.

        If a single rank varies, that rank is drawn. Otherwise a share between 0 and 1 is drawn for each
        mode, and the ranks are in proportion to limit^share, where limit is the mode's largest rank. With
        `below`, the budget is drawn as well.
        """
        if len(self.free) == 1:
            (index,) = self.free
            rank = trial.suggest_int(f"rank of {self.names[index]}", 1, self.limits[index], log=True)
            return self._with({index: rank})
        weights = [1.0] * len(self.names)
        for i in self.free:
            weights[i] = self.limits[i] ** trial.suggest_float(f"share of {self.names[i]}", 0.0, 1.0)
        budget = self.budget
        if self.below:
            budget = trial.suggest_int("parameters at most", self.count(self.smallest), self.budget, log=True)
        return self.ranks(weights, budget)

    def parameters(self, ranks: Ranks) -> dict[str, float]:
        """Returns the parameters of an Optuna trial from which `suggest` makes this vector of the space.

        From the parameters for a vector outside the space, `suggest` makes a vector near it.
        """
        ranks = tuple(map(min, ranks, self.limits))
        if len(self.free) == 1:
            (index,) = self.free
            return {f"rank of {self.names[index]}": ranks[index]}
        shares = {
            f"share of {self.names[i]}": math.log(ranks[i]) / math.log(self.limits[i])
            if ranks[i] > 1
            else 0.0
            for i in self.free
        }
        return shares | ({"parameters at most": self.count(ranks)} if self.below else {})

    def vectors(self, chosen: Mapping[int, int] = {}) -> Iterator[Ranks]:
        """Yields every vector of the space. `chosen` are the ranks of the first modes that vary, by index."""
        index = self.free[len(chosen)]
        last = len(chosen) == len(self.free) - 1
        most = self._largest(chosen, index, self.limits[index])
        if last and not self.below:
            ranks = self._with({**chosen, index: most})
            if all(
                ranks[i] == self.limits[i] or self.count(_raised(list(ranks), i)) > self.budget
                for i in self.free
            ):
                yield ranks
            return
        for rank in range(1, most + 1):
            if last:
                yield self._with({**chosen, index: rank})
            else:
                yield from self.vectors({**chosen, index: rank})


def _raised(ranks: list[int], index: int) -> list[int]:
    return [rank + (i == index) for i, rank in enumerate(ranks)]
