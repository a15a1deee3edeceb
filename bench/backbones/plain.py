"""Methods on a model that somebody has already, for a training loop of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from bench.backbones.base import locate
from bench.backbones.families import FAMILIES
from bench.backbones.huggingface import shape_of
from methods import Adapter, Backbone, Geometry, Method, Site, UserError, attach


def wrap(model: nn.Module | Backbone, method: Method, seed: int = 0) -> Adapter:
    """Freezes a model but for its head and puts an adapter of the method on it, in place.

    `model` is a classifier of transformers on ViT, DINOv2, BERT or RoBERTa (of images or sequences, say), or
    what `bench.backbones.load` gives. Afterwards the model's `parameters()` hold the adapter's too, so that
    an optimizer or transformers' Trainer trains adapter and head. Raises UserError for any other model, for
    one that has an adapter already, and as `Method.check` does, for instance while the ranks are free.
    """
    return attach(_classifier(model) if isinstance(model, nn.Module) else model, method, seed)


@dataclass(frozen=True)
class _PlainBackbone:
    """A classifier of transformers as it is: implements `methods.backbone.Backbone`."""

    module: nn.Module
    head: nn.Module
    geometry: Geometry
    projections: tuple[str, ...]
    paths: Mapping[Site, str]

    def path(self, site: Site) -> str:
        return self.paths[site]


def _classifier(model: Any) -> _PlainBackbone:
    config, head = getattr(model, "config", None), getattr(model, "classifier", None)
    model_type: Any = getattr(config, "model_type", None)
    family = FAMILIES.get(model_type)
    if family is None or not isinstance(head, nn.Module):
        raise UserError(
            f"a {type(model).__name__} cannot be wrapped; accepted are transformers' models of the types "
            f"{', '.join(FAMILIES)} with a head named `classifier`, and what bench.backbones.load gives"
        )
    counted = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in head.parameters())
    geometry, projections = shape_of(config, counted)
    paths = locate(
        type(model).__name__, geometry, projections, model.base_model, family.layouts, model.base_model_prefix
    )
    return _PlainBackbone(model, head, geometry, projections, paths)
