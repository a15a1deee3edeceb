"""Functions that run an encoder and pool its features, and functions that make heads for these features.

docs/reference/backbones.md shows the first line of each docstring: the features that a function returns
(batch, hidden), or the layers of the heads that it makes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# --- pooling: features of shape (batch, hidden) ---


def of_one_segment(pool: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Makes a pooling function accept and ignore `token_type_ids`, for models without segments."""

    @wraps(pool)
    def pooled(encoder: nn.Module, *, token_type_ids: Tensor | None = None, **texts: Tensor) -> Tensor:
        return pool(encoder, **texts)

    return pooled


def mean_of_tokens(encoder: nn.Module, *, attention_mask: Tensor, **texts: Tensor) -> Tensor:
    """the mean of the last hidden states over all tokens that are not padding"""
    states = encoder(attention_mask=_for_every_query(encoder, attention_mask), **texts).last_hidden_state
    return _mean(states, attention_mask)


def first_token(encoder: nn.Module, *, attention_mask: Tensor, **texts: Tensor) -> Tensor:
    """the last hidden state of the first token"""
    return encoder(attention_mask=_for_every_query(encoder, attention_mask), **texts).last_hidden_state[:, 0]


def first_token_as_masked(encoder: nn.Module, *, attention_mask: Tensor, **texts: Tensor) -> Tensor:
    """the last hidden state of the first token

    This function is for DeBERTa, which also masks its embeddings and so needs the mask as (batch, tokens).
    """
    return encoder(attention_mask=attention_mask, **texts).last_hidden_state[:, 0]


def last_token(
    encoder: nn.Module, *, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
) -> Tensor:
    """the last hidden state of the last token that is not padding

    This function is for decoders, whose earlier tokens have not seen the whole text. Padding may be on either
    side.
    """
    states = decoded(encoder, input_ids, attention_mask)
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    last = (attention_mask * places).argmax(1)
    return states[torch.arange(len(states), device=states.device), last]


def decoded(encoder: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Returns the last hidden states (batch, tokens, hidden) of a decoder.

    Positions are counted from the first token that is not padding.
    """
    positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
    texts = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": positions}
    states: Tensor = encoder(**texts, use_cache=False).last_hidden_state
    return states


def mean_of_windows(
    encoder: nn.Module, *, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
) -> Tensor:
    """the mean of the last hidden states over all tokens that are not padding

    This function is for ModernBERT, which has no segments and whose layers attend within windows. The
    four-dimensional mask that `mean_of_tokens` gives to the encoder would disable the windows.
    """
    return _mean(
        encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state, attention_mask
    )


def class_token(encoder: nn.Module, *, pixel_values: Tensor) -> Tensor:
    """the class token after the final layer norm"""
    return encoder(pixel_values=pixel_values).last_hidden_state[:, 0]


def class_token_unmasked(encoder: nn.Module, *, pixel_values: Tensor) -> Tensor:
    """the class token after the final layer norm, no patch masked

    This function is for masked autoencoders, which sort patches by random noise. Increasing noise keeps the
    order of the patches.
    """
    embeddings: Any = encoder.embeddings
    order = torch.arange(embeddings.patch_embeddings.num_patches, device=pixel_values.device)
    noise = order.expand(len(pixel_values), -1)
    return encoder(pixel_values=pixel_values, noise=noise).last_hidden_state[:, 0]


def normed_class_token(encoder: nn.Module, *, pixel_values: Tensor) -> Tensor:
    """the class token after the final layer norm, before any projection to a space shared with texts"""
    return encoder(pixel_values=pixel_values).pooler_output


def pooled_by_attention(encoder: nn.Module, *, pixel_values: Tensor) -> Tensor:
    """the model's own attention pooling"""
    return encoder(pixel_values=pixel_values).pooler_output


def mean_of_patches(encoder: nn.Module, *, pixel_values: Tensor) -> Tensor:
    """the mean of the patches' last hidden states, after a layer norm"""
    return encoder(pixel_values=pixel_values).pooler_output


def _for_every_query(encoder: nn.Module, attention_mask: Tensor) -> Tensor:
    """Makes the additive attention mask (batch, 1, 1, tokens), which all heads and queries share.

    It is 0 for tokens and -inf for padding. Given a mask of two dimensions, transformers would check in every
    step whether any token is masked, and so wait for the device. Given a boolean mask, each layer would
    convert it to an additive mask again.
    """
    kind, masked = attention_mask.device.type, attention_mask[:, None, None, :] == 0
    rounded = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if rounded else next(encoder.parameters()).dtype
    return torch.zeros_like(masked, dtype=dtype).masked_fill_(masked, -torch.inf)


def _mean(states: Tensor, attention_mask: Tensor) -> Tensor:
    mask = attention_mask.unsqueeze(-1).to(states.dtype)
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1)


# --- heads: (batch, hidden) to (batch, classes) ---


class DenseHead(nn.Module):
    """A head with one hidden layer, as in transformers' text classifiers.

    Its layers are dropout, dense, activation, dropout, and a linear layer to the classes. `before` and
    `after` are the probabilities of the first and the second dropout.
    """

    def __init__(
        self, hidden: int, before: float, after: float, activation: Callable[[Tensor], Tensor], classes: int
    ) -> None:
        super().__init__()
        self.activation = activation
        self.dense = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(before)
        self.inner_dropout = nn.Dropout(after)
        self.out_proj = nn.Linear(hidden, classes)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.activation(self.dense(self.dropout(features)))
        return self.out_proj(self.inner_dropout(inner))


#: A function that makes a head for a number of classes.
MakeHead = Callable[[int], nn.Module]


def linear_head(config: Any) -> MakeHead:
    """linear"""
    return partial(nn.Linear, config.hidden_size)


def roberta_head(config: Any) -> MakeHead:
    """dropout, dense, tanh, dropout, linear"""
    dropout = _dropout(config.classifier_dropout, config)
    return partial(DenseHead, config.hidden_size, dropout, dropout, torch.tanh)


def electra_head(config: Any) -> MakeHead:
    """dropout, dense, GELU, dropout, linear"""
    dropout = _dropout(config.classifier_dropout, config)
    return partial(DenseHead, config.hidden_size, dropout, dropout, F.gelu)


def deberta_head(config: Any) -> MakeHead:
    """dropout, dense, GELU, dropout, linear"""
    after = _dropout(getattr(config, "cls_dropout", None), config)
    return partial(DenseHead, config.hidden_size, config.pooler_dropout, after, F.gelu)


def distilbert_head(config: Any) -> MakeHead:
    """dense, ReLU, dropout, linear"""
    return partial(DenseHead, config.hidden_size, 0.0, config.seq_classif_dropout, F.relu)


def _dropout(own: float | None, config: Any) -> float:
    return config.hidden_dropout_prob if own is None else own
