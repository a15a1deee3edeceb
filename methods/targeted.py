"""The choice of projections of methods that were published on query and value."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal, Self

from methods.backbone import TARGETS, Geometry
from methods.base import Method
from methods.sizes import OneRank
from methods.trains import train_count, train_limit

#: `Targets`, and query and value alone.
AnyTargets = Literal["qv", "qkv", "qkvo", "qkvo+mlp"]
ANY_TARGETS: dict[str, tuple[str, ...]] = {"qv": ("query", "value"), **dict(TARGETS.items())}


class Targeted(Method):
    """A method that adapts what `targets` names."""

    #: A wider choice differs in nothing but the number of sites and their shapes.
    unvaried: ClassVar[frozenset[str]] = frozenset({"targets"})

    targets: AnyTargets = "qv"

    @classmethod
    def presets(cls) -> tuple[Self, ...]:
        """On weights of all shapes."""
        return (cls.model_validate({"targets": "qkvo+mlp"}),)

    @classmethod
    def listed(cls) -> tuple[Self, ...]:
        """As published."""
        return (cls(),)

    @property
    def projections(self) -> tuple[str, ...]:
        return ANY_TARGETS[self.targets]

    def adapted(self, geometry: Geometry) -> dict[str, tuple[int, int]]:
        """(out, in) of every projection that gets an update on this geometry."""
        return {site.projection: geometry.shape(site.projection) for site in geometry.sites(self.projections)}


class TrainsOfSites(OneRank, Targeted):
    """A method whose updates are made of tensor trains, alike in all layers; all inner ranks are `rank`."""

    @abstractmethod
    def trains(self, geometry: Geometry) -> list[tuple[int, ...]]:
        """The modes of every train of a layer. Raises UserError for a geometry that cannot be adapted."""

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """L · Σ r₋·n·r₊ over the trains of a layer."""
        return geometry.layers * sum(train_count(modes, rank) for modes in self.trains(geometry))

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """The rank with which the largest of the trains' tensors can be written."""
        return (max(map(train_limit, self.trains(geometry))),)
