"""Results of searches, allocations and redundancy analyses, stored beside the trials."""

from __future__ import annotations

from collections.abc import Mapping

from tensorbench.records import Wired
from tensorbench.records.words import Artifact, By, PointState, RunKind

#: For each importance evaluator of Optuna, each mode's share of the variation in the validation result that
#: ranks the points: {evaluator: {mode: share}}.
Importance = dict[str, dict[str, float]]


class Tried(Wired):
    """A rank for each mode, with the resulting number of parameters and the ids of the trials, by seed."""

    ranks: tuple[int, ...]
    parameters: int
    trials: dict[int, str]


class Finalist(Tried):
    """The chosen ranks, or other ranks that are compared with them, evaluated on the suite's own seeds."""

    label: str


class SearchPoint(Tried):
    """A point of a search: ranks and, if the search varies them, learning rates and scale.

    A rate or scale is None if the search takes it from the suite.
    """

    number: int
    state: PointState
    lr: float | None = None
    scale: float | None = None
    head_lr: float | None = None
    core_lr: float | None = None
    #: The mean validation score over the search's seeds. None unless all seeds are complete.
    value: float | None
    #: The mean validation loss over these seeds. None unless all are complete and the search ranks by loss.
    loss: float | None = None
    #: The trial of the first seed. Earlier versions stored no other trial.
    trial_id: str
    trials: dict[int, str] = {}


class RankResult(Wired):
    """The fields that results of searches and of allocations have in common.

    There is a result for each method, task, backbone and budget.
    """

    name: str
    method: str
    task: str
    backbone: str
    #: The budget's label. None if the suite gives ranks: their number of parameters is then the budget.
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


class AllocationPoint(Tried):
    """A point of an allocation's sweep, which changes the rank of one mode."""

    mode: str
    rank: int


class AllocationResult(RankResult):
    """The content of `allocation.json`."""

    points: tuple[AllocationPoint, ...]
    #: The ranks that were tried on the way from equal ranks to the heuristic's ranks.
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
    """The size of a part of an update, and how much the trained model needs it.

    The part is given by layer, projection and head, where None means all of them.
    """

    layer: int | None
    projection: str | None
    head: int | None
    #: The part's share of the squared norm.
    share: float
    #: The drop of the validation metric if the part is set to zero. None if not measured.
    drop: float | None

    @property
    def singled(self) -> tuple[str, ...]:
        """The names of the fields that are not None, out of layer, projection and head."""
        return tuple(kind for kind in ("layer", "projection", "head") if getattr(self, kind) is not None)


class Redundancy(Wired):
    """The content of `redundancy.json`: an analysis of how much of a trained adapter could be left out."""

    trial_id: str
    run_id: str
    method: str
    ranks: tuple[int, ...]
    metric: str
    #: The norm of the whole update, at all adapted sites of attention and MLP.
    norm: float
    modes: Mapping[str, Spectrum]
    components: tuple[ComponentWorth, ...]
