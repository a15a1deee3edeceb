"""Position embeddings at another image size: resized once on loading, so that no forward pays for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

#: Resizes an encoder's position embeddings, in place, to images of so many pixels a side.
Resize = Callable[[Any, int], None]


def parameters(encoder: Any, size: int) -> None:
    """Of a model whose position embeddings are a parameter, by its own interpolation."""
    embeddings = encoder.embeddings
    special = embeddings.position_embeddings.shape[1] - embeddings.patch_embeddings.num_patches
    resized = _interpolated(encoder, size, special)
    embeddings.position_embeddings = nn.Parameter(resized)
    embeddings.image_size = embeddings.patch_embeddings.image_size = (size, size)
    embeddings.patch_embeddings.num_patches = resized.shape[1] - special


def table(encoder: Any, size: int) -> None:
    """Of a model whose position embeddings are a table, as CLIP's and SigLIP's are."""
    embeddings = encoder.embeddings
    special = embeddings.num_positions - embeddings.num_patches
    resized = _interpolated(encoder, size, special)[0]
    embeddings.position_embedding = nn.Embedding.from_pretrained(resized)
    embeddings.position_ids = torch.arange(len(resized)).expand((1, -1))
    embeddings.num_positions, embeddings.num_patches = len(resized), len(resized) - special
    embeddings.image_size = size


def _interpolated(encoder: Any, size: int, special: int) -> torch.Tensor:
    """The position embeddings (1, positions, hidden) for images of this size; `special` are no patches'."""
    patches = (size // encoder.config.patch_size) ** 2
    tokens = torch.empty(1, patches + special, encoder.config.hidden_size)
    with torch.no_grad():
        resized: torch.Tensor = encoder.embeddings.interpolate_pos_encoding(tokens, size, size)
    return resized.clone()
