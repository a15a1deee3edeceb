"""What the tensor baselines share: a low-rank update of one free rank, and an MLP cut into slices."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Self

from pydantic import PositiveInt

from methods.backbone import Geometry
from methods.errors import UserError
from methods.lowrank import LowRankMethod
from methods.ranks import nearest_rank, too_small

#: Slices of shape (hidden, hidden) into which fc1's output and fc2's input are cut.
MLP_SLICES = 4


class OneRankMethod(LowRankMethod):
    """A method whose size is a single rank."""

    titled: ClassVar[frozenset[str]] = frozenset({"rank"})
    #: Whether fc1 and fc2 are stacked as `MLP_SLICES` slices each.
    slices_mlp: ClassVar[bool] = False

    #: None: set by a budget.
    rank: PositiveInt | None = None

    @abstractmethod
    def count_at(self, geometry: Geometry, rank: int) -> int:
        """`count` for any rank, on a geometry that the method accepts."""

    @property
    def size(self) -> tuple[int, ...] | None:
        return None if self.rank is None else (self.rank,)

    def count(self, geometry: Geometry) -> int:
        self._check_mlp(geometry)
        if self.rank is None:
            raise UserError(f"{self.label}: rank is free; give it, or a budget")
        return self.count_at(geometry, self.rank)

    def isorank(self, rank: int) -> Self:
        return self.model_copy(update={"rank": rank})

    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        self._check_mlp(geometry)
        smallest = self.count_at(geometry, 1)
        if smallest > budget:
            raise too_small(self.label, budget, smallest)
        return self.isorank(nearest_rank(lambda rank: self.count_at(geometry, rank), budget))

    def _check_mlp(self, geometry: Geometry) -> None:
        if self.slices_mlp and geometry.mlp != MLP_SLICES * geometry.hidden:
            raise UserError(
                f"{self.label} stacks fc1 and fc2 as {MLP_SLICES} slices of hidden × hidden each, so it "
                f"needs an MLP of {MLP_SLICES} × hidden; this backbone has {geometry}"
            )
