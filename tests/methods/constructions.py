"""Every way to construct a TensLoRA tensor."""

from __future__ import annotations

from itertools import product

from methods.tenslora import VARIANTS

#: The projection of every (d, d) slice of a layer, for each choice of targets.
SLICES = {
    "qkv": ("query", "key", "value"),
    "qkvo": ("query", "key", "value", "output"),
    "qkvo+mlp": ("query", "key", "value", "output", *["fc1"] * 4, *["fc2"] * 4),
}

#: (variant, factorization, targets); an MLP has no heads.
CONSTRUCTIONS = [
    (variant, factorization, targets)
    for variant, factorization, targets in product(VARIANTS, ("tucker", "cp", "tt"), SLICES)
    if targets != "qkvo+mlp" or "att" not in variant
]
