"""What methods share whose training may cut ranks of their tensors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated

from methods.backbone import Geometry
from methods.cuts import Cuts, Ranks
from methods.errors import UserError, shown
from methods.lowrank.cutting import Cuttable, Cutting
from methods.lowrank.stacked import StackedMethod
from methods.validation import Later


class CutMethod(StackedMethod):
    """A method of tensors with several ranks. Its own ranks say how many parameters are left at the end."""

    #: A training begins with larger ranks, and cuts those with the least singular values until it has no more
    #: parameters than the method's ranks make. None: the ranks stay what they are.
    cuts: Annotated[Cuts | None, Later()] = None

    @property
    @abstractmethod
    def cut_names(self) -> tuple[str, ...]:
        """What the ranks of a tensor belong to."""

    @property
    @abstractmethod
    def budget_ranks(self) -> Ranks:
        """For each of `cut_names` the rank with which there are as many parameters as at the end."""

    @abstractmethod
    def cut_limits(self, geometry: Geometry) -> Ranks:
        """For each of `cut_names` the rank above which nothing is gained."""

    @abstractmethod
    def count_with(self, geometry: Geometry, ranks: Ranks) -> int:
        """The adapter's parameters with a rank for each of `cut_names`."""

    def start_ranks(self, geometry: Geometry) -> Ranks:
        """The ranks of a fresh adapter. Raises UserError where a training would have none to cut."""
        if self.cuts is None:
            return self.budget_ranks
        counted = partial(self.count_with, geometry)
        return self.cuts.start_ranks(self.budget_ranks, self.cut_limits(geometry), counted, self.label)

    def peak_count(self, geometry: Geometry) -> int:
        return (
            self.count(geometry)
            if self.cuts is None
            else self.count_with(geometry, self.start_ranks(geometry))
        )

    def count_left(self, geometry: Geometry, ranks: Mapping[str, Sequence[int]]) -> int:
        if self.cuts is None:
            return super().count_left(geometry, ranks)
        if list(ranks) != list(self.cut_names) or not all(len(one) == 1 for one in ranks.values()):
            raise UserError(
                f"{self.label}: final ranks are one for each of {', '.join(self.cut_names)} "
                f"(got {shown(dict(ranks))})"
            )
        return self.count_with(geometry, tuple(rank for (rank,) in ranks.values()))

    def check(self, geometry: Geometry, projections: tuple[str, ...]) -> None:
        super().check(geometry, projections)
        if self.cuts is not None:
            self.start_ranks(geometry)

    def check_steps(self, steps: int) -> None:
        if self.cuts is not None:
            self.cuts.steps(steps)

    @property
    def varying_count(self) -> str:  # type: ignore[override]
        told = "training chooses the ranks, whose parameters are at most those of the budget"
        return told if self.cuts else ""

    def cutting(self, geometry: Geometry, tensor: Cuttable) -> Cutting | None:
        """What cuts the ranks of an adapter's tensor."""
        if self.cuts is None:
            return None
        counted = partial(self.count_with, geometry)
        return Cutting(self.cuts, tensor, self.cut_names, counted, self.count(geometry))
