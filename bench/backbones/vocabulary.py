"""What turns a language model's states into logits of tokens: an output layer, or the input embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.backbones.base import LoadedBackbone


def has_vocabulary(backbone: LoadedBackbone) -> bool:
    """Whether its states can be turned into logits of tokens."""
    if not getattr(backbone.info.input, "decodes", False):
        return False
    return _tied(backbone) or backbone.unembedding is not None


def unembedding_of(backbone: LoadedBackbone) -> Tensor | None:
    """As `token_logits` takes it, of a backbone that has one; on the device where the encoder is."""
    if _tied(backbone) or backbone.unembedding is None:
        return None
    return backbone.unembedding.to(next(backbone.module.encoder.parameters()).device)


def token_logits(encoder: Any, states: Tensor, unembedding: Tensor | None) -> Tensor:
    """The logits of every token in float32, (..., vocabulary), from states (..., hidden).

    `unembedding` is (vocabulary, hidden); None: the encoder's input embeddings.
    """
    table = encoder.get_input_embeddings().weight if unembedding is None else unembedding
    logits = F.linear(states, table.to(states.dtype)).float()
    cap = getattr(encoder.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _tied(backbone: LoadedBackbone) -> bool:
    config: Any = backbone.module.encoder.config
    return bool(config.tie_word_embeddings)
