"""Puts methods on a user's own model, to be trained in the user's own loop."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tensorbench.backbones.backbone import locate
from tensorbench.backbones.fused import QKV
from tensorbench.backbones.kinds import KINDS
from tensorbench.backbones.patterns import PlainBackbone, by_patterns
from tensorbench.methods import Adapter, Backbone, Method, UserError, attach
from tensorbench.methods.adapter import refuse_adapted
from tensorbench.methods.errors import shown

#: The projections of timm's vision transformers.
TIMM_PATTERNS = {
    **dict.fromkeys(QKV, "blocks.{layer}.attn.qkv"),
    "output": "blocks.{layer}.attn.proj",
    "fc1": "blocks.{layer}.mlp.fc1",
    "fc2": "blocks.{layer}.mlp.fc2",
}


def wrap(
    model: nn.Module | Backbone,
    method: Method,
    seed: int = 0,
    *,
    projections: Mapping[str, str] | None = None,
    heads: int | None = None,
    head: str | Sequence[str] = (),
) -> Adapter:
    """Freezes a model except for its head and puts an adapter of the method on it, in place.

    `model` is a module, or the result of `tensorbench.backbones.load`. These need nothing else:

    - a module with exactly one transformers encoder, of a kind marked in docs/reference/backbones.md.
      Everything outside the encoder is the head, except a language model's output layer, which stays frozen.
    - a vision transformer of timm. Its classifier is the head.

    Any other module needs `projections` and `heads`. `projections` maps query, key, value, output, gate, fc1
    and fc2, or some of them, to the paths of their linear layers, with `{layer}` in place of the layer's
    number, as in `{"query": "blocks.{layer}.attention.q"}`. Sizes are read from the layers, which have to be
    equal in all layers. `heads` is the number of attention heads, which no weight tells: 1 if there are none.
    `head` has the paths of the parts that train beside the adapter. Projections with one path are parts of
    one layer, in this order. This layer stays split after `Adapter.detach`, with the same outputs and the
    same names in `state_dict()`.

    Afterwards the model's `parameters()` include the adapter's, so that an optimizer or transformers' Trainer
    trains adapter and head. The model's `save_pretrained` writes the merged model, or raises UserError if the
    merged model would not compute the same as the adapted one. `Adapter.save_adapter` saves adapter and head
    alone.

    A model in bfloat16 runs in `torch.autocast`, with a head in float32. Parts beside the encoder that you
    froze stay frozen, unless all are.

    Raises UserError for a model that needs projections or has an adapter, for projections that are missing,
    not linear or of unequal shapes, for a parameter outside the encoder that belongs to no submodule or is
    one of the encoder's as well, for a head in a lower precision than float32, for a method that fits its
    head without a training loop (`Method.fits_head`), and as `Method.check` does.
    """
    if not isinstance(method, Method):
        raise UserError(f"wrap(): method should be made by tensorbench.methods.create, got {shown(method)}")
    if method.fits_head:
        raise UserError(
            f"{method.label} is fitted in a trial of a suite; a loop of your own trains the head alone: take "
            "head_only, or scikit-learn on the features"
        )
    if not any(isinstance(part, nn.Module) for part in (model, getattr(model, "module", None))):
        raise UserError(f"wrap(): model should be a module or what load gives, got {shown(model)}")
    if projections is None and (heads is not None or head):
        raise UserError("wrap(): heads and head belong to projections, which are missing")
    if projections is not None:
        if not isinstance(model, nn.Module):
            raise UserError("wrap(): projections belong to a module; what load gives has projections already")
        if heads is None:
            raise UserError("wrap(): heads is missing, the number of attention heads: 1 if there are none")
        backbone: Backbone = by_patterns(model, method, projections, heads, head)
    else:
        backbone = _filled_in(model, method) if isinstance(model, nn.Module) else model
    for name, parameter in backbone.head.named_parameters():
        if torch.promote_types(parameter.dtype, torch.float32) != parameter.dtype:
            raise UserError(
                f"the head's {name} is in {parameter.dtype}, where small steps are lost: convert the head "
                "with .float(), and train in torch.autocast"
            )
    adapter = attach(backbone, method, seed)
    for module in adapter.backbone.module.modules():
        if hasattr(module, "save_pretrained"):
            kind, split = KINDS.get(_model_type(module) or ""), ""
            if kind and kind.fused:
                split = (
                    f"tensorbench.backbones.load split layers of this {type(module).__name__}, so that "
                    "transformers could not load what save_pretrained writes: call "
                    "adapter.save_adapter(FOLDER), or export a suite's trial"
                )
            adapter.guard(module, split)
    return adapter


def _filled_in(model: Any, method: Method) -> PlainBackbone:
    """Describes a model of timm or transformers, whose patterns are known."""
    refuse_adapted(model)
    timm = sys.modules.get("timm.models.vision_transformer")
    if timm is not None and isinstance(model, timm.VisionTransformer):
        classifiers = [path for path, part in model.named_modules() if part is model.get_classifier()]
        return by_patterns(model, method, TIMM_PATTERNS, model.blocks[0].attn.num_heads, classifiers)
    path, encoder = _encoder(model)
    kind = KINDS[encoder.config.model_type]
    if kind.fused:
        together = " and ".join(", ".join(parts[:-1]) + f" and {parts[-1]}" for parts in kind.fused.values())
        raise UserError(
            f"a {type(model).__name__} cannot be wrapped: a {type(encoder).__name__} computes {together} in "
            "one layer, in which an adapter has no sites. tensorbench.backbones.load splits it, and what "
            "that gives can be wrapped"
        )
    head, config = _head(model, path), encoder.config
    counted = sum(parameter.numel() for parameter in encoder.parameters())
    geometry, projections = kind.shape.geometry(config, counted), kind.shape.projections(config)
    paths = locate(type(model).__name__, geometry, projections, encoder, kind.layouts, path)
    return PlainBackbone(model, head, encoder, geometry, projections, paths)


def _encoder(model: nn.Module) -> tuple[str, Any]:
    """Returns the path and the module of a model's only encoder.

    Raises UserError for a model without an encoder of a known kind, for a model that is itself an encoder,
    and for a second transformers model beside the encoder.
    """
    supported = {(kind.model_class, name) for name, kind in KINDS.items()}
    models = [(path, module) for path, module in model.named_modules() if _model_type(module)]
    encoders = [pair for pair in models if (type(pair[1]).__name__, _model_type(pair[1])) in supported][:1]
    siblings = [
        module
        for path, module in models
        if encoders and not _within(path, encoders[0][0]) and not _within(encoders[0][0], path)
    ]
    if not encoders or not encoders[0][0] or siblings:
        beside = f" (there is a {type(siblings[0]).__name__} beside it)" if siblings else ""
        raise UserError(
            f"a {type(model).__name__} cannot be wrapped without projections, the paths of its linear "
            f"layers; accepted without are modules that hold one encoder of transformers{beside} and a head "
            "for it, such as its own classifiers and language models, of the types "
            f"{', '.join(name for name, kind in KINDS.items() if not kind.fused)}, vision transformers of "
            "timm, and what tensorbench.backbones.load gives"
        )
    return encoders[0]


def _model_type(module: Any) -> str | None:
    """Returns the type of a transformers model. None for any other module, such as one of its layers."""
    is_model = hasattr(module, "base_model_prefix") and hasattr(module, "config")
    return getattr(module.config, "model_type", None) if is_model else None


def _within(path: str, other: str) -> bool:
    return not other or path == other or path.startswith(f"{other}.")


def _head(model: Any, encoder: str) -> nn.Module:
    """Returns everything outside the encoder at path `encoder`, except a language model's output layer.

    Other names of the encoder's parts are no head. Raises UserError for a parameter outside the encoder that
    belongs to no submodule, and for a submodule with parameters of the encoder beside its own.
    """
    of_encoder = {id(parameter) for parameter in model.get_submodule(encoder).parameters()}
    around = [encoder.rpartition(".")[0]]
    while around[-1]:
        around.append(around[-1].rpartition(".")[0])
    beside = []
    for path in around:
        holder = model.get_submodule(path)
        output = getattr(holder, "get_output_embeddings", lambda: None)()
        if loose := [name for name, _ in holder.named_parameters(path, recurse=False)]:
            raise UserError(
                f"a {type(model).__name__} cannot be wrapped: parameter {loose[0]}, outside the encoder, "
                "belongs to no submodule; put it into one, so that it can train as part of the head"
            )
        for name, module in holder.named_children():
            if _within(encoder, f"{path}.{name}".lstrip(".")) or not module.state_dict():
                continue
            if output is not None and any(part is output for part in module.modules()):
                continue  # a language model's output layer stays frozen
            own = [parameter for parameter in module.parameters() if id(parameter) not in of_encoder]
            if shared := [n for n, parameter in module.named_parameters() if id(parameter) in of_encoder]:
                if own:
                    raise UserError(
                        f"a {type(model).__name__} cannot be wrapped: {name}.{shared[0]} beside its encoder "
                        f"is one of the encoder's parameters, which stay frozen, while the rest of {name} "
                        "would train"
                    )
                continue
            beside.append(module)
    return beside[0] if len(beside) == 1 else nn.ModuleList(beside)
