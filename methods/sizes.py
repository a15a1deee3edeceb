"""What methods of a single rank share, and what methods without a rank do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self, TypeVar

from pydantic import PositiveInt

from methods.backbone import Geometry
from methods.base import Method
from methods.errors import UserError
from methods.ranks import nearest, nearest_rank, too_small

Sized = TypeVar("Sized", bound=Method)


class OneRank(Method):
    """A method whose size is a single rank. It states its count for any rank, and everything else is here."""

    titled: ClassVar[frozenset[str]] = frozenset({"rank"})
    #: Why a rank above `rank_limits` cannot be; empty where it only gains nothing.
    rank_bound: ClassVar[str] = ""

    #: None: set by a budget.
    rank: PositiveInt | None = None

    @abstractmethod
    def count_at(self, geometry: Geometry, rank: int) -> int:
        """`count` for any rank. Raises UserError for a geometry that the method cannot adapt."""

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
        return self.model_copy(update={"rank": rank})

    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        smallest = self.count_at(geometry, 1)
        if smallest > budget:
            raise too_small(self.label, budget, smallest)
        return self.isorank(nearest_rank(lambda rank: self.count_at(geometry, rank), budget))


class StartKept(Method):
    """A method whose adapter keeps a frozen copy of all its parameters as they started."""

    def frozen_count(self, geometry: Geometry) -> int:
        """As many again."""
        return self.count(geometry)


class Unsized(Method):
    """A method whose size nothing can set, so that it stands in every comparison as it is."""

    sizeable: ClassVar[bool] = False

    @property
    def size(self) -> tuple[int, ...]:
        return ()

    def isorank(self, rank: int) -> Self:
        return self

    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        return self


def nearest_fit(label: str, choices: Sequence[Sized], geometry: Geometry, budget: int) -> Sized:
    """Of a method in all its sizes the one whose count is nearest to a budget, the smaller count on a tie.

    Raises UserError where all of them exceed the budget.
    """
    smallest = min(choice.count(geometry) for choice in choices)
    if smallest > budget:
        raise too_small(label, budget, smallest, "")
    return nearest(choices, lambda choice: choice.count(geometry), budget)
