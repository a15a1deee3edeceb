"""Which form the export of a backbone takes, and where its frozen model is found."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from bench.backbones import BackboneSpec, LoadedBackbone, entry_of
from bench.backbones.backbone import FittedHead
from bench.backbones.huggingface import FolderBackbone, HubBackbone
from bench.backbones.kinds import KINDS, TIMM
from bench.backbones.random_weights import RandomBackbone
from bench.backbones.timm_vit import Blueprint, TimmBackbone
from bench.export.form import Form, Origin
from bench.export.targets import head_class
from bench.export.timm_form import TimmForm
from bench.export.transformers_form import TransformersForm
from bench.inputs import ImageInput, ModelInput
from methods import UserError


def form_of(backbone: LoadedBackbone, spec: BackboneSpec, classes: Sequence[str], wanted: ModelInput) -> Form:
    """The form of an export; `wanted` is how training prepared the examples.

    Raises UserError for a plug-in's backbone that no library can load again, and for weights in bfloat16.
    """
    _check_library(backbone)
    if spec.dtype != "float32":
        raise UserError(
            f"backbone '{backbone.info.name}' cannot be exported: what an export computes is compared in "
            f"float32, and the adapter was trained on weights in {spec.dtype}"
        )
    form: type[Form] = TimmForm if backbone.info.kind == TIMM else TransformersForm
    return form(backbone, _origin(backbone, spec), classes, wanted)


def _check_library(backbone: LoadedBackbone) -> None:
    """Raises UserError for a backbone of a kind of transformers that is none of its models or heads."""
    kind = KINDS.get(backbone.info.kind)
    if kind is None:
        return
    import transformers

    encoder, head = backbone.module.encoder, backbone.head
    wanted = getattr(transformers, kind.model_class)
    if isinstance(head, FittedHead) and head_class(backbone) is not nn.Linear:
        raise UserError(
            f"backbone '{backbone.info.name}' with a converged head cannot be exported: transformers' "
            f"classifier of kind '{backbone.info.kind}' has a dense layer before the last"
        )
    for what, module, needed in (("encoder", encoder, wanted), ("head", head, head_class(backbone))):
        if not isinstance(module, needed):
            raise UserError(
                f"backbone '{backbone.info.name}' of a plug-in cannot be exported: a backbone of kind "
                f"'{backbone.info.kind}' is exported for transformers, but its {what} is a "
                f"{type(module).__name__}, not a {needed.__name__}"
            )


def _origin(backbone: LoadedBackbone, spec: BackboneSpec) -> Origin:
    entry = entry_of(spec)
    commit = backbone.info.weights_hash.rpartition("@")[2]
    if isinstance(entry, FolderBackbone):
        return Origin(str(entry.path.expanduser().resolve()))
    if isinstance(entry, HubBackbone):
        return Origin(entry.repository, commit)
    if isinstance(entry, TimmBackbone):
        blueprint = entry.blueprint()
        if entry.weights is not None:
            return Origin(str(entry.weights.expanduser().resolve()), blueprint=blueprint)
        return Origin(blueprint.hub(entry.model)[0], commit, blueprint)
    if backbone.info.kind != TIMM:
        return Origin(None)
    if not isinstance(entry, RandomBackbone):
        raise UserError(
            f"backbone '{backbone.info.name}' of a plug-in is a timm model, but by which name timm makes it "
            "is not known, so no checkpoint could be loaded on it"
        )
    assert isinstance(backbone.info.input, ImageInput)
    geometry = backbone.geometry
    shape = {
        # The described size and not the entry's own, for what the export brings is resized already.
        "img_size": backbone.info.input.size,
        "patch_size": entry.patch,
        "embed_dim": geometry.hidden,
        "depth": geometry.layers,
        "num_heads": geometry.heads,
        "mlp_ratio": geometry.mlp / geometry.hidden,
    }
    return Origin(None, blueprint=Blueprint("vit_base_patch16_224", shape, {}))
