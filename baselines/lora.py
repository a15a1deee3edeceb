"""LoRA (arXiv 2106.09685), by the `peft` package."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from pydantic import Field, PositiveInt

from baselines.peft_adapter import PeftAdapter
from methods.backbone import TARGETS, Backbone, Geometry, Targets
from methods.base import Method
from methods.errors import UserError
from methods.ranks import nearest_rank, too_small


class LoRA(Method):
    """y = W·x + b + scale · B·A·dropout(x); A kaiming-uniform(a=√5), B zero, both by peft.

    The published alpha is rank · scale, so that the update is not divided by the rank.
    """

    name: ClassVar[str] = "lora"
    titled: ClassVar[frozenset[str]] = frozenset({"rank"})

    #: None: set by a budget.
    rank: PositiveInt | None = None
    #: alpha / rank.
    scale: float = 1.0
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    #: `qkvo+mlp` is every linear layer.
    targets: Targets = "qkv"

    @property
    def projections(self) -> tuple[str, ...]:
        return TARGETS[self.targets]

    @property
    def size(self) -> tuple[int, ...] | None:
        return None if self.rank is None else (self.rank,)

    @property
    def title(self) -> str:
        return "LoRA"

    def count(self, geometry: Geometry) -> int:
        """rank · Σ (in + out) over the sites."""
        if self.rank is None:
            raise UserError("LoRA: rank is free; give it, or a budget")
        return self._count_with(geometry, self.rank)

    def _count_with(self, geometry: Geometry, rank: int) -> int:
        return geometry.layers * rank * sum(sum(geometry.shape(name)) for name in self.projections)

    def isorank(self, rank: int) -> Self:
        return self.model_copy(update={"rank": rank})

    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        smallest = self._count_with(geometry, 1)
        if smallest > budget:
            raise too_small(self.label, budget, smallest)
        return self.isorank(nearest_rank(lambda rank: self._count_with(geometry, rank), budget))

    def put(self, backbone: Backbone, generator: torch.Generator) -> PeftAdapter:
        from peft import LoraConfig

        rank = self.rank
        assert rank is not None
        return PeftAdapter(
            backbone,
            self.projections,
            # peft wants a number for alpha; r · scale keeps alpha / r at exactly the scale.
            lambda targets: LoraConfig(
                r=rank,
                lora_alpha=rank * self.scale,
                lora_dropout=self.dropout,
                target_modules=targets,
            ),
            generator,
        )
