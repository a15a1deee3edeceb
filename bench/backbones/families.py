"""How transformers lays out the model types that are backbones here, and how their features are pooled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.backbones.base import BackboneKind
from methods.backbone import PROJECTIONS

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


def mean_of_tokens(encoder: nn.Module, *, attention_mask: Tensor, **texts: Tensor) -> Tensor:
    """Mean of the last states over the tokens that the mask keeps."""
    states = encoder(attention_mask=_for_every_query(attention_mask), **texts).last_hidden_state
    mask = attention_mask.unsqueeze(-1).to(states.dtype)
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1)


def first_token(encoder: nn.Module, *, attention_mask: Tensor, **texts: Tensor) -> Tensor:
    """The last state of the first token."""
    return encoder(attention_mask=_for_every_query(attention_mask), **texts).last_hidden_state[:, 0]


def _for_every_query(attention_mask: Tensor) -> Tensor:
    """From (batch, tokens) to what attention takes as it is: boolean, (batch, head, query, key).

    Of a two-dimensional mask transformers asks whether anything is masked, and so waits for the device in
    every step.
    """
    return attention_mask[:, None, None, :].bool()


def class_token(encoder: nn.Module, *, pixel_values: Tensor) -> Tensor:
    """The class token after the final layer norm."""
    return encoder(pixel_values=pixel_values).last_hidden_state[:, 0]


class RobertaHead(nn.Module):
    """RoBERTa's own: dropout, dense, tanh, dropout, projection. (batch, hidden) to (batch, classes)."""

    def __init__(self, hidden: int, dropout: float, classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(hidden, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.out_proj(self.dropout(torch.tanh(self.dense(self.dropout(features)))))


def _linear_head(config: Any) -> Callable[[int], nn.Module]:
    return partial(nn.Linear, config.hidden_size)


def _roberta_head(config: Any) -> Callable[[int], nn.Module]:
    dropout = config.classifier_dropout
    return partial(
        RobertaHead, config.hidden_size, config.hidden_dropout_prob if dropout is None else dropout
    )


def _layout(layer: str, *paths: str) -> Mapping[str, str]:
    return {
        projection: f"{layer}.{{layer}}.{path}" for projection, path in zip(PROJECTIONS, paths, strict=True)
    }


_SELF = "attention.attention"
_NEW = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2")
_OLD = (f"{_SELF}.query", f"{_SELF}.key", f"{_SELF}.value", "attention.output.dense")
_BERT = _layout(
    "encoder.layer",
    *("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    *("intermediate.dense", "output.dense"),
)


@dataclass(frozen=True)
class Family:
    """How transformers lays out one model type.

    `layouts` has the paths of the projections by the attribute names of transformers 5, then by those of 4.
    """

    model_class: str
    layouts: tuple[Mapping[str, str], ...]
    pool: Callable[..., Tensor]
    make_head: Callable[[Any], Callable[[int], nn.Module]] = _linear_head
    arguments: Mapping[str, Any] = field(default_factory=dict)
    normalisation: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None


FAMILIES: dict[BackboneKind, Family] = {
    "vit": Family(
        "ViTModel",
        (_layout("layers", *_NEW), _layout("encoder.layer", *_OLD, "intermediate.dense", "output.dense")),
        class_token,
        arguments={"add_pooling_layer": False},
        normalisation=(HALF, HALF),
    ),
    "dinov2": Family(
        "Dinov2Model",
        (_layout("encoder.layer", *_NEW), _layout("encoder.layer", *_OLD, "mlp.fc1", "mlp.fc2")),
        class_token,
        normalisation=(IMAGENET_MEAN, IMAGENET_STD),
    ),
    "bert": Family("BertModel", (_BERT,), mean_of_tokens, arguments={"add_pooling_layer": False}),
    "roberta": Family(
        "RobertaModel", (_BERT,), first_token, _roberta_head, arguments={"add_pooling_layer": False}
    ),
}

#: A weight that is learned for masked images only, and that no forward of ours reads.
MAY_MISS = ("mask_token",)

#: What checkpoints of transformers' task models hold beside the encoder: their heads and old buffers.
MAY_EXCEED = (
    *("pooler", "classifier", "distillation_classifier", "cls", "lm_head", "qa_outputs", "decoder"),
    *("mask_token", "position_ids"),
)
