"""Runs an allocation: a sweep of each mode's rank, and a path from equal ranks to the heuristic's."""

from __future__ import annotations

from statistics import fmean

from tensorbench.methods import UserError
from tensorbench.metrics import METRICS
from tensorbench.plan.cells import PlanCell
from tensorbench.plan.choosing import Allocation
from tensorbench.records.record import comparable, results
from tensorbench.records.search_results import AllocationPoint, AllocationResult, Tried
from tensorbench.search.importance import importances
from tensorbench.search.nested import Nested, about, tried
from tensorbench.search.space import Ranks, RankSpace


def log_spaced(low: int, high: int, count: int) -> list[int]:
    """Returns at most `count` ranks from `low` to `high`, both included, evenly spaced by logarithm."""
    steps = max(count - 1, 1)
    return sorted({round(low * (high / low) ** (i / steps)) for i in range(count)})


def sweeps(space: RankSpace, heuristic: Ranks, count: int) -> list[tuple[str, int, Ranks]]:
    """Varies the rank of each mode in turn, and scales the ranks of the other modes to the budget.

    The varied rank takes at most `count` values from 1 to its limit. The other ranks keep the heuristic's
    proportions. Returns triples (mode, varied rank, all ranks). If no ranks of the other modes are small
    enough for the budget, the triple is left out.
    """
    vectors = []
    for index in space.free:
        for rank in log_spaced(1, space.limits[index], count):
            ranks = space.ranks(heuristic, fixed={index: rank})
            if ranks is not None:
                vectors.append((space.names[index], rank, ranks))
    return vectors


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


class RankAllocation:
    """The allocation of one cell: rank vectors that share its budget among the modes of its method.

    Raises UserError for a method with a single mode, for an unknown mode, for a budget below the smallest
    ranks, and for a path that would begin with more parameters than it ends with.
    """

    def __init__(self, cell: PlanCell, section: Allocation) -> None:
        self.cell, self.section = cell, section
        method, geometry = cell.method, cell.info.geometry
        if len(method.rank_names) < 2:
            raise UserError(f"method '{method.label}' has a single mode; an allocation needs several")
        assert method.size
        self.budget = cell.target_count or method.count(geometry)
        self.space = RankSpace(method, geometry, self.budget, section.modes)
        self.heuristic = self.space.affordable(method.size)
        self.swept = sweeps(self.space, self.heuristic, section.ranks)
        self.path = self._path() if section.path else []
        self.vectors = list(dict.fromkeys([self.heuristic, *(v for _, _, v in self.swept), *self.path]))

    def _path(self) -> list[Ranks]:
        isorank = self.cell.method.isorank(self.section.isorank)
        first, last = isorank.count(self.cell.info.geometry), self.space.count(self.heuristic)
        if first > last:
            raise UserError(
                f"allocation.isorank: {isorank.label} at rank {self.section.isorank} throughout has "
                f"{first:,} parameters, more than the {last:,} at the end of the path; "
                "take a smaller one, or path: 0"
            )
        assert isorank.size
        # The path changes every rank, including those that the sweeps keep.
        space = RankSpace(self.cell.method, self.cell.info.geometry, self.budget)
        points = path(isorank.size, self.heuristic, self.section.path)
        return list(dict.fromkeys(map(space.affordable, points)))

    def run(self, nested: Nested) -> AllocationResult:
        """Runs all rank vectors. Then compares the best one of the sweeps with the heuristic's ranks.

        The comparison runs on the suite's seeds. It is skipped if no vector of the sweeps finished on all of
        the allocation's seeds.
        """
        method, section = self.cell.method, self.section
        sizes = [method.with_size(ranks) for ranks in self.vectors]
        rows, trials = nested.trials(sizes, section.seeds, "allocation", epochs=section.epochs)
        records = nested.run(rows, trials, "allocation")
        row_of = dict(zip(self.vectors, rows, strict=True))
        points = {ranks: tried(row) for ranks, row in row_of.items()}
        values = {ranks: results(records, row.trials.values(), section.by) for ranks, row in row_of.items()}
        # A vector with a failed seed cannot win, and is ignored for the importance of modes.
        means = {ranks: fmean(v) for ranks, v in values.items() if len(v) == len(section.seeds)}
        candidates = {ranks: means[ranks] for _, _, ranks in self.swept if ranks in means}
        sign = METRICS.get(self.cell.definition.metric).sign if section.by == "score" else -1.0
        best = max(candidates, key=lambda ranks: sign * comparable(candidates[ranks]), default=None)
        result = AllocationResult(
            **about(self.cell),
            name=nested.name,
            asked=self.budget,
            by=section.by,
            modes=self.space.names,
            points=tuple(
                AllocationPoint(mode=mode, rank=rank, **points[ranks]) for mode, rank, ranks in self.swept
            ),
            path=tuple(Tried(**points[ranks]) for ranks in self.path),
            importance=importances(
                self.space.names, [(ranks, sign * mean) for ranks, mean in candidates.items()]
            ),
            heuristic=Tried(**points[self.heuristic]),
            best=Tried(**points[best]) if best else None,
        )
        nested.keep(result)
        if best:
            methods = {
                "best allocation": method.with_size(best),
                "heuristic": method.with_size(self.heuristic),
            }
            result = result.model_copy(update={"final": nested.compare(methods)})
            nested.keep(result)
        return result
