"""Parameters of a whole encoder in closed form, so that a plan can count full fine-tuning without weights."""

from __future__ import annotations

from dataclasses import replace

from methods.backbone import Geometry


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
    """The geometry with `encoder` counted.

    Vision: `patches` of `patch` × `patch` pixels, a class token and `spare_tokens` more (a mask token), a
    final norm. Text: `vocabulary`, `positions`, two token types and a norm. Every layer has four attention
    maps and two of the MLP with biases, two norms, and with `layer_scale` two scales.
    """
    d, mlp = geometry.hidden, geometry.mlp
    layer = 4 * (d * d + d) + 2 * d * mlp + d + mlp + 4 * d + (2 * d if layer_scale else 0)
    rows = vocabulary + positions + 2 if vocabulary else patches + 2 + spare_tokens
    projection = 3 * patch * patch * d + d if patch else 0
    return replace(geometry, encoder=geometry.layers * layer + rows * d + projection + 2 * d)
