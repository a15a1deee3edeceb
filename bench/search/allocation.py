"""The allocation: sweeps each mode's rank, and walks a path from equal ranks to the heuristic's."""

from __future__ import annotations

from tensorbench.methods import UserError
from tensorbench.plan.cells import PlanCell
from tensorbench.plan.choosing import Allocation
from tensorbench.search.ranks import CellPoints, RankPoint, Tries
from tensorbench.search.space import Ranks, RankSpace


def log_spaced(low: int, high: int, count: int) -> list[int]:
    """Returns at most `count` ranks from `low` to `high`, both included, evenly spaced by logarithm."""
    steps = max(count - 1, 1)
    return sorted({round(low * (high / low) ** (i / steps)) for i in range(count)})


def sweeps(space: RankSpace, heuristic: Ranks, count: int) -> list[Ranks]:
    """Varies the rank of each mode in turn, and scales the ranks of the other modes to the budget.

    The varied rank takes at most `count` values from 1 to its limit. The other ranks keep the heuristic's
    proportions. If no ranks of the other modes are small enough for the budget, the ranks are left out.
    """
    vectors = (
        space.ranks(heuristic, fixed={index: rank})
        for index in space.free
        for rank in log_spaced(1, space.limits[index], count)
    )
    return [ranks for ranks in vectors if ranks is not None]


def path(start: Ranks, end: Ranks, count: int) -> list[Ranks]:
    """Returns at most `count` rank vectors from `start` to `end`, both included.

    The ranks of each mode are evenly spaced by logarithm. A `count` of 1 gives `start` alone.
    """
    steps = max(count - 1, 1)
    vectors = [
        tuple(round(a * (b / a) ** (i / steps)) for a, b in zip(start, end, strict=True))
        for i in range(count)
    ]
    return list(dict.fromkeys(vectors))


class CellAllocation(CellPoints):
    """The rank vectors that an allocation tries in one cell: ways to share the budget among the modes.

    These are the heuristic's ranks, sweeps of single modes, and a path from small equal ranks to the
    heuristic's. Raises UserError for an unknown mode, for a budget below the smallest ranks, and if the path
    would begin with more parameters than it ends with.
    """

    name_of_section = "allocation"
    fewest = 2

    def __init__(self, cell: PlanCell, section: Allocation) -> None:
        super().__init__(cell, section)
        swept = sweeps(self.space, self.heuristic, section.ranks)
        self.vectors = list(dict.fromkeys([self.heuristic, *swept, *self._path(section)]))

    def _path(self, section: Allocation) -> list[Ranks]:
        if not section.path:
            return []
        method, geometry = self.cell.method, self.cell.info.geometry
        isorank = method.isorank(section.isorank)
        first, last = isorank.count(geometry), self.space.count(self.heuristic)
        if first > last:
            raise UserError(
                f"allocation.isorank: {isorank.label} at rank {section.isorank} throughout has "
                f"{first:,} parameters, more than the {last:,} at the end of the path; "
                "take a smaller one, or path: 0"
            )
        assert isorank.size
        # The path changes every rank, including those that the sweeps keep.
        space = RankSpace(method, geometry, self.budget)
        return [space.affordable(ranks) for ranks in path(isorank.size, self.heuristic, section.path)]

    def tries(self) -> Tries:
        return (yield self.batch(map(RankPoint, self.vectors)))
