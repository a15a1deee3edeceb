"""The choice of projections of methods that were published on query and value."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from methods.backbone import TARGETS, Geometry
from methods.base import Method

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
