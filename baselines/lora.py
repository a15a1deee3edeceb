"""LoRA (arXiv 2106.09685), as implemented by peft: two matrices for each weight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from pydantic import Field

from tensorbench.baselines.peft_adapter import PeftAdapter
from tensorbench.methods.backbone import Backbone, Geometry
from tensorbench.methods.sizes import ANY_TARGETS, AnyTargets, OneRank
from tensorbench.methods.validation import Scale


class LoRA(OneRank):
    """y = W·x + b + scale · B·A·dropout(x), with A (rank, in) and B (out, rank).

    LoRA's alpha is rank · scale, so `scale` is not divided by the rank. Start: A kaiming-uniform (a = √5) and
    B zero, both drawn by peft.
    """

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"

    #: LoRA's alpha divided by the rank.
    scale: Scale = 1.0
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    #: `qkvo+mlp` adapts every linear layer.
    targets: AnyTargets = "qkv"

    @property
    def shifts_dropout(self) -> str:  # type: ignore[override]
        return "peft's dropout draws from the backbone's stream" if self.dropout else ""

    @property
    def projections(self) -> tuple[str, ...]:
        return ANY_TARGETS[self.targets]

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts rank · Σ (in + out), with the sum over all sites."""
        projections = geometry.having(self.projections)
        return geometry.layers * rank * sum(sum(geometry.shape(name)) for name in projections)

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        return (geometry.full_rank(self.projections),)

    def put(self, backbone: Backbone, generator: torch.Generator) -> PeftAdapter:
        return PeftAdapter(backbone, self.projections, self._config, generator)

    def _config(self, targets: Iterable[str]) -> Any:
        from peft import LoraConfig

        rank = self.resolved_rank
        # peft divides alpha by r, so alpha = r · scale.
        return LoraConfig(
            r=rank, lora_alpha=rank * self.scale, lora_dropout=self.dropout, target_modules=list(targets)
        )
