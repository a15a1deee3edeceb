"""Tests timm's vision transformers: splitting qkv keeps the outputs, and other designs are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tensorbench.backbones import BackboneSpec, describe, load
from tensorbench.backbones.fused import Split
from tensorbench.methods.backbone import PROJECTIONS, Geometry, Site
from tensorbench.methods.errors import UserError

from ...messages import naming
from ..local_checkpoints import batch, features


def test_timm_outputs_do_not_change_by_the_split(timm_file: tuple[Any, Path]) -> None:
    model, file = timm_file
    backbone = load(BackboneSpec(timm="test_vit", local=file))
    inputs = batch("timm", size=160)
    with torch.no_grad():
        states = model.forward_features(inputs["pixel_values"])
        expected = model.forward_head(states, pre_logits=True)
    torch.testing.assert_close(features(backbone, inputs), expected, atol=1e-5, rtol=0)
    assert backbone.projections == PROJECTIONS
    assert backbone.geometry == Geometry(64, 2, 6, 192)
    assert backbone.info == describe(BackboneSpec(timm="test_vit", local=file))
    linears: list[Any] = [
        backbone.module.get_submodule(backbone.path(Site(3, projection)))
        for projection in ("query", "key", "value")
    ]
    assert torch.equal(torch.cat([linear.weight for linear in linears]), model.blocks[3].attn.qkv.weight)
    assert len({linear.weight.untyped_storage().data_ptr() for linear in linears}) == 3


def test_split_without_bias() -> None:
    fused = nn.Linear(6, 18, bias=False)
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(Split(fused)(x), fused(x))


def test_timm_at_another_image_size(timm_file: tuple[Any, Path]) -> None:
    model, file = timm_file
    backbone = load(BackboneSpec(timm="test_vit", local=file, image_size=96))
    model.set_input_size(img_size=(96, 96))
    inputs = batch("timm", size=96)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(inputs["pixel_values"]), pre_logits=True)
    torch.testing.assert_close(features(backbone, inputs), expected, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=naming(97, "divisible by patch size")):
        describe(BackboneSpec(timm="test_vit", local=file, image_size=97))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("swin_tiny_patch4_window7_224", "SwinTransformer"),
        ("convnext_atto", "ConvNeXt"),
        ("eva02_tiny_patch14_224", "224 pixels"),
        ("vit_bse_patch16_224", naming("'vit_bse_patch16_224'", "vit_base_patch16_224")),
    ],
)
def test_other_timm_models_are_refused(timm_file: tuple[Any, Path], model: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        describe(BackboneSpec(timm=model, local=timm_file[1]))


@pytest.mark.parametrize("model", ["swin_tiny_patch4_window7_224", "convnext_atto.d2_in1k"])
def test_a_timm_model_of_another_design_is_refused_before_the_hub_is_asked(
    monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setattr("tensorbench.backbones.timm_vit.snapshot", pytest.fail)
    with pytest.raises(UserError, match="is no plain vision transformer"):
        describe(BackboneSpec(timm=model))


def test_a_gated_timm_mlp_leaves_four_projections(timm_file: tuple[Any, Path]) -> None:
    info = describe(BackboneSpec(timm="vit_giant_patch14_dinov2", local=timm_file[1]))
    assert info.projections == PROJECTIONS[:4]


def test_timm_weights_that_do_not_fit(timm_file: tuple[Any, Path], tmp_path: Path) -> None:
    state = load_file(timm_file[1])
    del state["blocks.2.attn.qkv.weight"]
    file = tmp_path / "other.safetensors"
    save_file({**state, "blocks.9.norm1.bias": torch.zeros(2)}, file)
    with pytest.raises(UserError, match=naming("missing", "blocks.2.attn.qkv.weight", "blocks.9")):
        load(BackboneSpec(timm="test_vit", local=file))
    with pytest.raises(UserError, match=naming("safetensors")):
        describe(BackboneSpec(timm="test_vit", local=tmp_path / "none.safetensors"))
