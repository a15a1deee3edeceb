"""Reads geometries from transformers' configurations, and counts the parameters of encoders."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tensorbench.methods.backbone import GATED_PROJECTIONS, PROJECTIONS, Geometry

ATTENTION_ONLY = PROJECTIONS[:4]


@dataclass(frozen=True)
class Shape:
    """The names of the configuration fields that hold a geometry.

    `kv_heads` and `head_size` are None if the other fields determine them. `gated` says whether the MLP is
    gated: it is a bool for all models of the kind, or the name of the field that holds the bool.
    """

    hidden: str = "hidden_size"
    heads: str = "num_attention_heads"
    layers: str = "num_hidden_layers"
    mlp: str = "intermediate_size"
    kv_heads: str | None = None
    head_size: str | None = None
    gated: str | bool = False

    def geometry(self, config: Any, encoder: int | None = None) -> Geometry:
        """Reads the geometry from a configuration. `encoder` is the encoder's number of parameters."""
        own = {"kv_heads": self.kv_heads, "head_size": self.head_size}
        return Geometry(
            hidden=getattr(config, self.hidden),
            heads=getattr(config, self.heads),
            layers=getattr(config, self.layers),
            mlp=self.width(config),
            encoder=encoder,
            gated=self.is_gated(config),
            # Without a head size in the configuration, heads divide the hidden size evenly.
            **{name: size for name, field in own.items() if field and (size := getattr(config, field, None))},
        )

    def is_gated(self, config: Any) -> bool:
        """Whether the MLP has a gate with a linear layer of its own."""
        return self.gated if isinstance(self.gated, bool) else bool(getattr(config, self.gated))

    def width(self, config: Any) -> int:
        """Returns the inner width of the MLP."""
        return getattr(config, self.mlp)

    def projections(self, config: Any) -> tuple[str, ...]:
        """Returns the projections of a layer that adapters can adapt."""
        return GATED_PROJECTIONS if self.is_gated(config) else PROJECTIONS

    def settings(self, geometry: Geometry) -> dict[str, Any]:
        """Returns the configuration fields, with values, that give a model this geometry.

        The field that `gated` names is left out.
        """
        fields = {
            self.hidden: geometry.hidden,
            self.heads: geometry.heads,
            self.layers: geometry.layers,
            self.mlp: geometry.mlp,
            self.kv_heads: geometry.kv_heads,
            self.head_size: geometry.head_size,
        }
        return {field: size for field, size in fields.items() if field is not None}


#: The shape of a decoder with grouped key and value heads and a gated MLP.
DECODER = Shape(kv_heads="num_key_value_heads", head_size="head_dim", gated=True)


@dataclass(frozen=True)
class DinoShape(Shape):
    """The shape of DINOv2, whose configuration gives the MLP's width as a multiple of the hidden size.

    A gated MLP has two thirds of that width, rounded up to a multiple of eight. Adapters cannot adapt it, so
    that only the attention has sites.
    """

    mlp: str = "mlp_ratio"

    def projections(self, config: Any) -> tuple[str, ...]:
        return ATTENTION_ONLY if config.use_swiglu_ffn else PROJECTIONS

    def width(self, config: Any) -> int:
        width = int(config.hidden_size * config.mlp_ratio)
        return (int(width * 2 / 3) + 7) // 8 * 8 if config.use_swiglu_ffn else width

    def settings(self, geometry: Geometry) -> dict[str, Any]:
        return {**super().settings(geometry), self.mlp: geometry.mlp // geometry.hidden}


@dataclass(frozen=True)
class T5Shape(Shape):
    """The shape of T5, whose configuration gives the head size, and whose MLP is gated since version 1.1."""

    hidden: str = "d_model"
    heads: str = "num_heads"
    layers: str = "num_layers"
    mlp: str = "d_ff"
    head_size: str | None = "d_kv"
    gated: str | bool = "is_gated_act"

    def settings(self, geometry: Geometry) -> dict[str, Any]:
        return {**super().settings(geometry), "feed_forward_proj": "gated-gelu" if geometry.gated else "relu"}


@dataclass(frozen=True)
class GPT2Shape(Shape):
    """The shape of GPT-2, whose MLP has width 4d if the configuration gives no width."""

    hidden: str = "n_embd"
    heads: str = "n_head"
    layers: str = "n_layer"
    mlp: str = "n_inner"

    def width(self, config: Any) -> int:
        return config.n_inner or 4 * int(config.n_embd)


def with_encoder(
    geometry: Geometry,
    *,
    patches: int = 0,
    patch: int = 0,
    vocabulary: int = 0,
    positions: int = 0,
    layer_scale: bool = False,
    spare_tokens: int = 0,
) -> Geometry:
    """Returns the geometry with `encoder`, the encoder's number of parameters, computed in closed form.

    A vision encoder has `patches` patches of `patch` × `patch` pixels, a class token, `spare_tokens` further
    tokens (such as a mask token), and a final norm. A text encoder has `vocabulary` tokens, `positions`
    positions, two token types, and a norm of the embeddings. Every layer has six projections with biases, two
    norms and, if `layer_scale` is true, two vectors of scales.
    """
    d, mlp = geometry.hidden, geometry.mlp
    layer = 4 * (d * d + d) + 2 * d * mlp + d + mlp + 4 * d + (2 * d if layer_scale else 0)
    rows = vocabulary + positions + 2 if vocabulary else patches + 2 + spare_tokens
    projection = 3 * patch * patch * d + d if patch else 0
    return replace(geometry, encoder=geometry.layers * layer + rows * d + projection + 2 * d)
