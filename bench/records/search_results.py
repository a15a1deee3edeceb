"""Results of searches, allocations and redundancy analyses, stored beside the trials."""

from __future__ import annotations

from collections.abc import Mapping

from bench.records import Wired
from bench.records.words import Artifact, By, Kind, PointState

#: Evaluator -> mode -> its share in the variation of the validation result that is ranked.
Importance = dict[str, dict[str, float]]


class Tried(Wired):
    """A rank vector that was tried, with its trials by seed."""

    ranks: tuple[int, ...]
    parameters: int
    trials: dict[int, str]


class Finalist(Tried):
    """The chosen rank vector, or one compared with it, on the suite's own seeds."""

    label: str


class SearchPoint(Tried):
    """A point of a search. None as a rate or a scale stands for the suite's."""

    number: int
    state: PointState
    lr: float | None = None
    scale: float | None = None
    head_lr: float | None = None
    core_lr: float | None = None
    #: The mean validation score over the search's seeds; None unless it is complete.
    value: float | None
    #: The mean validation loss; None also where the search goes by the score.
    loss: float | None = None
    #: The trial of the first seed; an earlier version stored no other.
    trial_id: str
    trials: dict[int, str] = {}


class Found(Wired):
    """The shared part of the results of a search and an allocation, for one cell under one budget."""

    name: str
    method: str
    task: str
    backbone: str
    #: None: the method's own size.
    budget: str | None
    #: Adapter parameters that must not be exceeded.
    asked: int
    #: The validation result by which what is tried is ranked, and by which `importance` is.
    by: By = "score"
    modes: tuple[str, ...]
    importance: Importance
    #: Empty until the final trials have run.
    final: tuple[Finalist, ...] = ()


class SearchResult(Found):
    """`search.json`."""

    objectives: tuple[str, ...]
    trials: tuple[SearchPoint, ...]
    #: Numbers of the points that no other beats with as few parameters; of two objectives only.
    pareto: tuple[int, ...]
    best: SearchPoint | None

    @property
    def tied(self) -> int:
        """The number of other points that equal the best by the search's objective."""
        if self.best is None or len(self.objectives) > 1:
            return 0
        return sum(self._rank(point) == self._rank(self.best) for point in self.trials) - 1

    def _rank(self, point: SearchPoint) -> float | None:
        return point.loss if self.by == "loss" else point.value


class AllocationPoint(Tried):
    """A step of the sweep of one mode."""

    mode: str
    rank: int


class AllocationResult(Found):
    """`allocation.json`."""

    points: tuple[AllocationPoint, ...]
    #: From every rank equal to the heuristic's.
    path: tuple[Tried, ...]
    heuristic: Tried
    best: Tried | None


#: The artifacts of finished searches and allocations, and their forms.
FOUND: Mapping[Kind, tuple[Artifact, type[SearchResult | AllocationResult]]] = {
    Kind.SEARCH: (Artifact.SEARCH, SearchResult),
    Kind.ALLOCATION: (Artifact.ALLOCATION, AllocationResult),
}


class Spectrum(Wired):
    """A mode's singular values, from large to small."""

    singular_values: tuple[float, ...]
    effective_rank: float
    #: The number of singular values that hold 99% of the squared norm.
    rank_99: int


class ComponentWorth(Wired):
    """A part of an update, by layer, projection and head. None in a field means all."""

    layer: int | None
    projection: str | None
    head: int | None
    #: The part's share of the squared norm.
    share: float
    #: Drop of the validation metric when the part is zeroed. None if not measured.
    drop: float | None

    @property
    def singled(self) -> tuple[str, ...]:
        """The fields that are set: layer, projection, head."""
        return tuple(kind for kind in ("layer", "projection", "head") if getattr(self, kind) is not None)


class Redundancy(Wired):
    """`redundancy.json`: how redundant one trained adapter is."""

    trial_id: str
    run_id: str
    method: str
    ranks: tuple[int, ...]
    metric: str
    #: Norm of the whole update, including the MLP's.
    norm: float
    modes: Mapping[str, Spectrum]
    components: tuple[ComponentWorth, ...]
