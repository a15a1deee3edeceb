"""Methods on a model that somebody has already, for a training loop of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from bench.backbones.base import locate
from bench.backbones.kinds import KINDS
from methods import Adapter, Backbone, Geometry, Method, Site, UserError, attach


def wrap(model: nn.Module | Backbone, method: Method, seed: int = 0) -> Adapter:
    """Freezes a model but for its head and puts an adapter of the method on it, in place.

    `model` is a classifier of transformers (of images or sequences, say), of a kind that docs/backbones.md
    marks for it because its whole head is its `classifier`; or what `bench.backbones.load` gives. Afterwards
    the model's `parameters()` hold the adapter's too, so that an optimizer or transformers' Trainer trains
    adapter and head. Raises UserError for any other model, for one that has an adapter already, and as
    `Method.check` does, for instance while the ranks are free.
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
    kind = KINDS.get(model_type)
    if kind is None or not kind.plain_head or not isinstance(head, nn.Module):
        accepted = ", ".join(name for name, known in KINDS.items() if known.plain_head)
        raise UserError(
            f"a {type(model).__name__} cannot be wrapped; accepted are transformers' models of the types "
            f"{accepted} with a head named `classifier`, and what bench.backbones.load gives"
        )
    counted = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in head.parameters())
    geometry, projections = kind.shape.geometry(config, counted), kind.shape.projections(config)
    paths = locate(
        type(model).__name__, geometry, projections, model.base_model, kind.layouts, model.base_model_prefix
    )
    return _PlainBackbone(model, head, geometry, projections, paths)
