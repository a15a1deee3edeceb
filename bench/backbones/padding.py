"""Masks of texts in transformers' models, made without waiting for an accelerator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from tensorbench.backbones.transformers_internals import attention_of
from tensorbench.backbones.untrusted import ATTENTION

#: The values of `side` in `padded`. They are also names of attention implementations in transformers.
ANY_SIDE, RIGHT = ATTENTION, "sdpa_padded_on_the_right"


@contextmanager
def padded(encoder: Any, side: str) -> Iterator[None]:
    """A context in which an encoder reads texts that are padded on `side`: `RIGHT` or `ANY_SIDE`.

    transformers drops a mask that masks no token. To decide this, it reads the mask in each forward pass, so
    that the host waits for the device. `RIGHT` avoids the wait. Decoders then get no padding mask. They need
    none, since no token attends to a later one and no output at a padding token is read. ModernBERT, which is
    no decoder, always keeps its mask. `RIGHT` and `ANY_SIDE` give equal outputs up to rounding. The context
    has no effect on encoders whose attention is not transformers' `sdpa`.
    """
    config = getattr(encoder, "config", None)
    before = attention_of(config)
    if before not in (ANY_SIDE, RIGHT):
        yield
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(RIGHT, sdpa_attention_forward)
    AttentionMaskInterface.register(RIGHT, _unread_mask)
    encoder.set_attn_implementation(side)
    try:
        yield
    finally:
        encoder.set_attn_implementation(before)


def _unread_mask(
    *, attention_mask: Tensor | None, allow_is_causal_skip: bool = True, **arguments: Any
) -> Tensor | None:
    """Builds the mask of `sdpa_mask` without reading a value from the device.

    If attention is causal, padding is left out of the mask.
    """
    from transformers.masking_utils import sdpa_mask

    arguments["allow_is_bidirectional_skip"] = False
    causal = allow_is_causal_skip
    return sdpa_mask(
        attention_mask=None if causal else attention_mask, allow_is_causal_skip=causal, **arguments
    )
