"""Frozen pretrained backbones from several libraries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from tensorbench.backbones.backbone import (
    BackboneEntry,
    BackboneInfo,
    BackboneKind,
    Classifier,
    LoadedBackbone,
)
from tensorbench.backbones.inputs import TextInput
from tensorbench.backbones.registered_backbones import BACKBONES, check_info
from tensorbench.backbones.spec import BackboneSpec
from tensorbench.methods.errors import UserError, check_kind
from tensorbench.methods.quantised import check_library
from tensorbench.methods.validation import validate

__all__ = [
    "BACKBONES",
    "BackboneEntry",
    "BackboneInfo",
    "BackboneKind",
    "BackboneSpec",
    "Classifier",
    "LoadedBackbone",
    "describe",
    "load",
]


def describe(spec: BackboneSpec | str | Mapping[str, Any]) -> BackboneInfo:
    """Describes a backbone for a plan, without loading its weights.

    A registered name needs neither network nor transformers. Raises UserError for an invalid spec, an unknown
    name, a source that cannot be found or read, an unsupported model, or an invalid image size.
    """
    spec = _validated(spec)
    entry = entry_of(spec)
    with BACKBONES.blaming(spec.name or ""):
        info = entry.describe(spec.image_size)
        check_info(info)
    return _answerable(spec, spec.described(info))


def load(spec: BackboneSpec | str | Mapping[str, Any]) -> LoadedBackbone:
    """Loads a backbone on the CPU, frozen and in eval mode, with a head of two classes in float32.

    The encoder has the spec's `dtype`. Forward passes of a bfloat16 encoder must run under bf16 autocast. If
    the spec has `quantise`, the sites' weights are then quantised. Raises UserError as `describe` does, for
    missing or unexpected encoder weights, and for `quantise` without bitsandbytes.
    """
    spec = _validated(spec)
    if spec.quantise:
        check_library()
    entry = entry_of(spec)
    with BACKBONES.blaming(spec.name or ""):
        backbone = entry.load(spec.image_size)
        if not isinstance(backbone, LoadedBackbone):
            raise UserError(f"load() should return a LoadedBackbone, got a {type(backbone).__name__}")
    if spec.dtype == "bfloat16":
        backbone.round()
    if spec.quantise:
        backbone.quantise(spec.quantise)
    backbone.info = _answerable(spec, spec.described(backbone.info))
    return backbone


def _validated(spec: BackboneSpec | str | Mapping[str, Any]) -> BackboneSpec:
    accepted = "a name, a BackboneSpec, or a mapping of its fields"
    check_kind("backbone", spec, (str, BackboneSpec, Mapping), accepted)
    return validate(BackboneSpec, spec, "backbone")


def _answerable(spec: BackboneSpec, info: BackboneInfo) -> BackboneInfo:
    """Returns a description whose tokenizer's errors name the plug-in that provides the backbone.

    Descriptions of images, and of backbones without a registered name, are returned unchanged.
    """
    if spec.name is None or not isinstance(info.input, TextInput):
        return info
    return replace(info, input=replace(info.input, blaming=partial(BACKBONES.blaming, spec.name)))


def entry_of(spec: BackboneSpec) -> BackboneEntry:
    if spec.name is not None:
        return BACKBONES.get(spec.name)
    # Imported here, so that counting on registered names stays quick.
    if spec.timm is not None:
        from tensorbench.backbones.timm_vit import TimmBackbone

        return TimmBackbone(spec.timm, spec.local, spec.revision)
    from tensorbench.backbones.huggingface import FolderBackbone, HubBackbone

    if spec.hub is not None:
        return HubBackbone(spec.hub, spec.revision)
    assert spec.local is not None
    return FolderBackbone(spec.local)
