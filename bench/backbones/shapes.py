"""Which fields of a configuration say what a geometry says, in both directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from methods.backbone import PROJECTIONS, Geometry

ATTENTION_ONLY = PROJECTIONS[:4]


@dataclass(frozen=True)
class Shape:
    """The names of a configuration's fields. `gated` is the one that says whether the MLP is gated.

    A gated MLP has no fc1 that alone feeds fc2: adapters see the attention only.
    """

    hidden: str = "hidden_size"
    heads: str = "num_attention_heads"
    layers: str = "num_hidden_layers"
    mlp: str = "intermediate_size"
    gated: str | None = None

    def geometry(self, config: Any, encoder: int | None = None) -> Geometry:
        """The geometry that a configuration describes, for an encoder of so many parameters."""
        return Geometry(
            hidden=getattr(config, self.hidden),
            heads=getattr(config, self.heads),
            layers=getattr(config, self.layers),
            mlp=self.width(config),
            encoder=encoder,
        )

    def width(self, config: Any) -> int:
        """The inner width of the MLP."""
        return getattr(config, self.mlp)

    def projections(self, config: Any) -> tuple[str, ...]:
        """The projections that every layer has."""
        return ATTENTION_ONLY if self.gated and getattr(config, self.gated) else PROJECTIONS

    def settings(self, geometry: Geometry) -> dict[str, Any]:
        """The fields of a configuration that describes this geometry, no MLP gated."""
        return {
            self.hidden: geometry.hidden,
            self.heads: geometry.heads,
            self.layers: geometry.layers,
            self.mlp: geometry.mlp,
        }


@dataclass(frozen=True)
class AlwaysGated(Shape):
    """The shape of a kind whose every MLP is gated."""

    def projections(self, config: Any) -> tuple[str, ...]:
        return ATTENTION_ONLY


@dataclass(frozen=True)
class DinoShape(Shape):
    """DINOv2's: the width of the MLP is a ratio, of which a gated one has two thirds, in whole eighths."""

    mlp: str = "mlp_ratio"
    gated: str | None = "use_swiglu_ffn"

    def width(self, config: Any) -> int:
        width = int(config.hidden_size * config.mlp_ratio)
        return (int(width * 2 / 3) + 7) // 8 * 8 if config.use_swiglu_ffn else width

    def settings(self, geometry: Geometry) -> dict[str, Any]:
        return {**super().settings(geometry), self.mlp: geometry.mlp // geometry.hidden}
