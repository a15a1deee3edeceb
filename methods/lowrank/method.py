"""The method of a low-rank update, before it meets a backbone."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from pydantic import Field

from methods.adapter import Adapter
from methods.backbone import Backbone, Geometry
from methods.base import Method
from methods.lowrank.adapter import LowRankAdapter
from methods.lowrank.contracted import Parametrisation
from methods.lowrank.linear import DropoutAt
from methods.validation import Scale


class LowRankMethod(Method):
    """A method whose update of every site is `up @ down`."""

    #: Multiplies the update; not divided by any rank unless the method says so.
    scale: Scale = 1.0
    #: Dropout probability, at `dropout_at`.
    dropout: float = Field(0.0, ge=0.0, lt=1.0)

    dropout_at: ClassVar[DropoutAt] = "input"

    @abstractmethod
    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        """Builds and starts the parameters. The update that they contract to is zero."""

    def put(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        parametrisation = self.parametrise(backbone.geometry, generator)
        return LowRankAdapter(backbone, parametrisation, self.dropout, self.dropout_at)
