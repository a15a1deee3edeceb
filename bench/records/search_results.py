"""Results of searches, allocations and redundancy analyses, stored beside the trials."""

from __future__ import annotations

from collections.abc import Mapping

from bench.records import Wired
from bench.records.words import Artifact, By, PointState, RunKind

#: A mode's share of the variation in the ranked validation result, by evaluator, then by mode.
Importance = dict[str, dict[str, float]]


class Tried(Wired):
    """A rank vector that was tried, with its trials by seed."""

    ranks: tuple[int, ...]
    parameters: int
    trials: dict[int, str]


class Finalist(Tried):
    """The chosen rank vector or a competitor, evaluated on the suite's own seeds."""

    label: str


class SearchPoint(Tried):
    """A point of a search. None as a rate or scale means the suite's value."""

    number: int
    state: PointState
    lr: float | None = None
    scale: float | None = None
    head_lr: float | None = None
    core_lr: float | None = None
    #: The mean validation score over the search's seeds. None unless all seeds are complete.
    value: float | None
    #: The mean validation loss. None unless all seeds are complete and the search ranks by loss.
    loss: float | None = None
    #: The trial of the first seed, the only one that earlier versions stored.
    trial_id: str
    trials: dict[int, str] = {}


class RankResult(Wired):
    """The common fields of results of a search or allocation, for one method, task, backbone and budget."""

    name: str
    method: str
    task: str
    backbone: str
    #: The budget's label. None: the method's row gives its ranks, whose count is the budget.
    budget: str | None
    #: The largest allowed number of adapter parameters.
    asked: int
    #: The validation result that ranks the points and that `importance` explains.
    by: By = "score"
    modes: tuple[str, ...]
    importance: Importance
    #: The final results. Empty until the final trials have run.
    final: tuple[Finalist, ...] = ()


class SearchResult(RankResult):
    """The content of `search.json`."""

    objectives: tuple[str, ...]
    trials: tuple[SearchPoint, ...]
    #: The numbers of the points on the Pareto front. Empty with a single objective.
    pareto: tuple[int, ...]
    best: SearchPoint | None

    @property
    def tied(self) -> int:
        """The number of other points whose result equals the best point's.

        0 without a best point, and with two objectives.
        """
        if self.best is None or len(self.objectives) > 1:
            return 0
        return sum(self._rank(point) == self._rank(self.best) for point in self.trials) - 1

    def _rank(self, point: SearchPoint) -> float | None:
        return point.loss if self.by == "loss" else point.value


class AllocationPoint(Tried):
    """A point of the sweep over one mode's rank."""

    mode: str
    rank: int


class AllocationResult(RankResult):
    """The content of `allocation.json`."""

    points: tuple[AllocationPoint, ...]
    #: The path from equal ranks to the heuristic's ranks.
    path: tuple[Tried, ...]
    heuristic: Tried
    best: Tried | None


#: The artifacts of finished searches and allocations, with the classes that read them.
RESULT_FORMS: Mapping[RunKind, tuple[Artifact, type[SearchResult | AllocationResult]]] = {
    RunKind.SEARCH: (Artifact.SEARCH, SearchResult),
    RunKind.ALLOCATION: (Artifact.ALLOCATION, AllocationResult),
}


class Spectrum(Wired):
    """A mode's singular values in descending order."""

    singular_values: tuple[float, ...]
    effective_rank: float
    #: The number of singular values that make up 99% of the squared norm.
    rank_99: int


class ComponentWorth(Wired):
    """Size and worth of a part of an update. None as layer, projection or head means all of them."""

    layer: int | None
    projection: str | None
    head: int | None
    #: The part's share of the squared norm.
    share: float
    #: Drop of the validation metric when the part is set to zero. None if not measured.
    drop: float | None

    @property
    def singled(self) -> tuple[str, ...]:
        """The names of those of the fields layer, projection and head that are not None."""
        return tuple(kind for kind in ("layer", "projection", "head") if getattr(self, kind) is not None)


class Redundancy(Wired):
    """The content of `redundancy.json`: the redundancy of one trained adapter."""

    trial_id: str
    run_id: str
    method: str
    ranks: tuple[int, ...]
    metric: str
    #: Norm of the whole update, including that of the MLP.
    norm: float
    modes: Mapping[str, Spectrum]
    components: tuple[ComponentWorth, ...]
