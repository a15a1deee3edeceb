"""Masks of texts in transformers' models, made without waiting for an accelerator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from tensorbench.backbones.untrusted import ATTENTION

#: Where an encoder takes padding to be. The names are those of transformers' implementations of attention.
ANY_SIDE, RIGHT = ATTENTION, "sdpa_padded_on_the_right"


@contextmanager
def padded(encoder: Any, side: str) -> Iterator[None]:
    """A context in which an encoder reads texts that are padded on `side`: `RIGHT` or `ANY_SIDE`.

    In each forward pass, transformers drops a mask that masks no token. To find out, it reads the mask from
    the device, and the host has to wait. `RIGHT` avoids this. Decoders then get no padding mask, since no
    token sees a later one and no output of padding is read. ModernBERT always keeps its mask. Outputs are the
    same up to rounding. Encoders whose attention is not transformers' `sdpa` stay as they are.
    """
    config = getattr(encoder, "config", None)
    before = getattr(config, "_attn_implementation", None)
    if config is None or before not in (ANY_SIDE, RIGHT):
        yield
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(RIGHT, sdpa_attention_forward)
    AttentionMaskInterface.register(RIGHT, _unread_mask)
    config._attn_implementation = side
    try:
        yield
    finally:
        config._attn_implementation = before


def _unread_mask(
    *, attention_mask: Tensor | None, allow_is_causal_skip: bool = True, **arguments: Any
) -> Tensor | None:
    """Makes the mask of `sdpa_mask`, without padding if attention is causal. Reads no value."""
    from transformers.masking_utils import sdpa_mask

    arguments["allow_is_bidirectional_skip"] = False
    causal = allow_is_causal_skip
    return sdpa_mask(
        attention_mask=None if causal else attention_mask, allow_is_causal_skip=causal, **arguments
    )
