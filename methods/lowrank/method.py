"""The method of a low-rank update, before it meets a backbone."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from pydantic import Field

from methods.adapter import Adapter
from methods.backbone import Backbone, Geometry
from methods.base import Method
from methods.lowrank.adapter import Fit, LowRankAdapter
from methods.lowrank.contracted import Parametrisation
from methods.lowrank.linear import DropoutAt
from methods.lowrank.masks import Masks
from methods.validation import Scale


class LowRankMethod(Method):
    """A method whose update of every site is `up @ down`."""

    #: Multiplies the update; not divided by any rank unless the method says so.
    scale: Scale = 1.0
    #: Dropout probability, at `dropout_at`.
    dropout: float = Field(0.0, ge=0.0, lt=1.0)

    dropout_at: ClassVar[DropoutAt] = "input"

    @property
    def revisions(self) -> int:
        """Dropout drew from the backbone's stream before it had one of its own."""
        return super().revisions + (self.dropout > 0)

    @abstractmethod
    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        """Builds and starts the parameters. The update that they contract to is zero."""

    def put(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        parametrisation = self.parametrise(backbone.geometry, generator)
        fit = self.fitting(backbone.geometry)
        return LowRankAdapter(backbone, parametrisation, self.masks(generator), self.dropout_at, fit)

    def fitting(self, geometry: Geometry) -> Fit | None:
        """What makes the contracted pairs those of the backbone's sites. None: they are."""
        return None

    def masks(self, generator: torch.Generator) -> Masks | None:
        """The adapter's dropout, None without any. It draws after the start, which is the same with both."""
        if not self.dropout:
            return None
        return Masks(self.dropout, int(torch.randint(2**63 - 1, (), generator=generator)))
