"""Base classes for the size and the projections of methods, and the search for the rank nearest a budget."""

from __future__ import annotations

import re
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import index
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, PositiveInt, TypeAdapter, WrapValidator

from tensorbench.methods.backbone import TARGETS, Geometry
from tensorbench.methods.base import Method
from tensorbench.methods.errors import UserError, shown, too_small

Choice = TypeVar("Choice")

#: The choices of projections in `Targets`, and "qv", which is query and value.
AnyTargets = Literal["qv", "qkv", "qkvo", "qkvo+mlp"]
ANY_TARGETS: dict[AnyTargets, tuple[str, ...]] = {"qv": ("query", "value"), **dict(TARGETS.items())}


def _rank_or_part(value: Any) -> int | float | str:
    if isinstance(value, float) and value == 1:
        raise ValueError("should be 1 for rank 1, or the mode's size for all of it")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, float) and 0 < value < 1:
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?x", value) and float(value[:-1]):
        return value
    raise ValueError(
        "should be a rank, a number between 0 and 1 as a share of the largest useful rank, or a multiple of "
        "the rank that the budget would set, such as 1.5x"
    )


_COMPLETE: TypeAdapter[tuple[int, ...] | None] = TypeAdapter(tuple[PositiveInt, ...] | None)
_BY_NAME: TypeAdapter[dict[str, int | float | str]] = TypeAdapter(
    Annotated[dict[str, Annotated[Any, AfterValidator(_rank_or_part)]], Field(min_length=1)]
)

#: The ranks of a method with several ranks: a list of all ranks, a mapping from names to some of the ranks,
#: or None. Lists and mappings are validated separately, since pydantic's message for a union would describe
#: both.
Ranks = Annotated[
    tuple[PositiveInt, ...] | Mapping[str, int | float | str] | None,
    WrapValidator(
        lambda value, _: (_BY_NAME if isinstance(value, Mapping) else _COMPLETE).validate_python(value)
    ),
]


def check_ranks(label: str, ranks: Sequence[int]) -> tuple[int, ...]:
    """Returns ranks as integers of Python.

    Raises UserError, with a message that begins with `label`, if a rank is below 1 or is no whole number.
    """
    checked = tuple(map(_whole, ranks))
    if min(checked, default=1) < 1:
        raise UserError(
            f"{label}: ranks should be whole numbers of at least 1 (got {', '.join(map(shown, ranks))})"
        )
    return checked


def _whole(value: Any) -> int:
    """Returns a whole number as an integer of Python, and 0 for anything else."""
    try:
        return 0 if isinstance(value, bool) else index(value)
    except TypeError:
        return 0


def nearest_rank(count: Callable[[int], int], budget: int, low: int = 1, high: int | None = None) -> int:
    """Returns the rank in [low, high] whose count is nearest to the budget. On a tie, the smaller count wins.

    `count` must grow with the rank until it stops for good. If it stops below the budget and `high` is None,
    the result is the smallest rank with the largest count. The number of calls of `count` is logarithmic in
    the result. Raises UserError if the search finds that the count falls below that of `low`.
    """
    below, above = low, low
    while count(above) < budget and (high is None or above < high):
        below, above = above, above * 2 if high is None else min(above * 2, high)
        if count(above) < count(low):
            raise UserError(
                f"its count falls from {count(below):,} at rank {below:,} to {count(above):,} at rank "
                f"{above:,}, so that no rank can be found for a budget of {budget:,} parameters"
            )
        if count(above) == count(below):
            below, budget = low, count(above)
            break
    # Candidates: the first rank that reaches the budget, and the rank below it.
    above = bisect_left(range(below, above), budget, key=count) + below
    return nearest([max(low, above - 1), above], count, budget)


def nearest(candidates: Iterable[Choice], count: Callable[[Choice], int], budget: int) -> Choice:
    """Returns the candidate whose count is nearest to the budget.

    On a tie, the smaller count wins. Of equal counts, the first candidate wins.
    """
    return min(candidates, key=lambda candidate: (abs(count(candidate) - budget), count(candidate)))


class OneRank(Method):
    """A method whose size is a single rank. A subclass defines `count_at`."""

    titled: ClassVar[frozenset[str]] = frozenset({"rank"})
    #: Why a rank above `rank_limits` is impossible. Empty if it is possible but useless.
    rank_bound: ClassVar[str] = ""

    #: The method's only rank. None: a budget sets the rank.
    rank: PositiveInt | None = None

    @abstractmethod
    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts the parameters at a rank. Raises UserError for a geometry that the method cannot adapt."""

    @property
    def size(self) -> tuple[int, ...] | None:
        return None if self.rank is None else (self.rank,)

    @property
    def resolved_rank(self) -> int:
        """The rank. Raises UserError while it is free."""
        if self.rank is None:
            raise UserError(f"{self.label}: rank is free; give it, or a budget")
        return self.rank

    def count(self, geometry: Geometry) -> int:
        return self.count_at(geometry, self.resolved_rank)

    def check(self, geometry: Geometry, projections: tuple[str, ...]) -> None:
        super().check(geometry, projections)
        (limit,) = self.rank_limits(geometry) if self.rank_bound else (None,)
        if limit is not None and self.resolved_rank > limit:
            raise UserError(
                f"{self.label}: rank is {self.resolved_rank:,}, accepted is at most {limit:,}: "
                f"{self.rank_bound} on a backbone of {geometry}"
            )

    def isorank(self, rank: int) -> Self:
        (rank,) = check_ranks(self.label, (rank,))
        return self.model_copy(update={"rank": rank})

    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        smallest = self.count_at(geometry, 1)
        if smallest > budget:
            raise too_small(self.label, budget, smallest)

        def count(rank: int) -> int:
            return self.count_at(geometry, rank)

        (limit,) = self.rank_limits(geometry) or (None,)
        high = None if limit is None else int(limit)
        # Where counts do not fall above the limit, a budget may ask for a rank there, and plans refuse it.
        if high is not None and count(high) < budget and count(high) <= count(high + 1):
            high = None
        return self.isorank(nearest_rank(count, budget, high=high))


class StartKept(Method):
    """A method whose adapter keeps a frozen copy of the initial values of all its parameters."""

    def frozen_count(self, geometry: Geometry) -> int:
        return self.count(geometry)


class Unsized(Method):
    """A method of fixed size, which no rank or budget changes."""

    sizeable: ClassVar[bool] = False

    @property
    def size(self) -> tuple[int, ...]:
        return ()

    def isorank(self, rank: int) -> Self:
        return self

    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        return self


class Targeted(Method):
    """A method whose option `targets` chooses the projections that it adapts."""

    #: The conformance checks do not vary `targets`, since a wider choice only adds sites.
    unvaried: ClassVar[frozenset[str]] = frozenset({"targets"})

    targets: AnyTargets = "qv"

    @classmethod
    def presets(cls) -> tuple[Self, ...]:
        """Returns one preset, which adapts all projections and so weights of all shapes."""
        return (cls.model_validate({"targets": "qkvo+mlp"}),)

    @classmethod
    def listed(cls) -> tuple[Self, ...]:
        """Returns the method with its default projections."""
        return (cls(),)

    @property
    def projections(self) -> tuple[str, ...]:
        return ANY_TARGETS[self.targets]

    def adapted(self, geometry: Geometry) -> dict[str, tuple[int, int]]:
        """Returns the shape (out, in) of the weight of every adapted projection, by the projection's name."""
        return {site.projection: geometry.shape(site.projection) for site in geometry.sites(self.projections)}
