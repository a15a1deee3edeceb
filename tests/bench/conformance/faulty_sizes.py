"""Copies of the smallest plug-in that are wrong in what they are: their name, count, ranks or options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from methods.backbone import Geometry

from .faulty import Pairs


class ForgetsItsRank(Pairs):
    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "method": "another"}


class CountsTooFew(Pairs):
    def count(self, geometry: Geometry) -> int:
        return super().count(geometry) - 1


class IgnoresTheRank(Pairs):
    def isorank(self, rank: int) -> Self:
        return super().isorank(min(rank, 2))


class ForgetsItsOptions(Pairs):
    def isorank(self, rank: int) -> Self:
        return type(self)(rank=rank)


class ForgetsThemInAFit(Pairs):
    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        return type(self)(rank=super().fit(geometry, budget).rank, dropout=self.dropout)


class HasAnotherSize(Pairs):
    def with_size(self, ranks: Sequence[int]) -> Self:
        return self.isorank(ranks[0] + 1)


class NamesTwoRanks(Pairs):
    rank_names: ClassVar[tuple[str, ...]] = ("down", "up")  # type: ignore[assignment]


class HasNoLimits(Pairs):
    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        return ()


class ScalesWhatItCallsIdle(Pairs):
    idle: ClassVar[frozenset[str]] = frozenset({"scale"})  # type: ignore[assignment]


class StaysBelow(Pairs):
    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        return self.isorank(max(budget // self.isorank(1).count(geometry), 1))


FAULTS = {
    ForgetsItsRank: ("identity", "identity names 'another'"),
    CountsTooFew: ("count", "the formula counts"),
    IgnoresTheRank: ("isorank", r"isorank\(3\) has ranks \(2,\)"),
    ForgetsItsOptions: ("isorank", "isorank of a method with scale=0.5 gives one with scale=1.0"),
    ForgetsThemInAFit: ("fit", "fit of a method with scale=0.5 gives one with scale=1.0"),
    HasAnotherSize: ("isorank", r"with_size\(\(2,\)\) has ranks \(3,\)"),
    NamesTwoRanks: ("isorank", "rank_names has 2 entries for 1 ranks"),
    HasNoLimits: ("isorank", "rank_limits has 0 entries for 1 ranks"),
    ScalesWhatItCallsIdle: ("identity", "idle names scale, yet scale=0.5 changes the outputs"),
    StaysBelow: ("fit", "but rank"),
}
