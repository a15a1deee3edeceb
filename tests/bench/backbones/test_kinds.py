"""Tests every kind of backbone: it passes the checks, and gives the same features as its library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tensorbench.backbones import BackboneSpec, describe, load, pooling
from tensorbench.backbones.fused import Split
from tensorbench.backbones.kinds import KINDS, NAMES
from tensorbench.checks.conformance import check_kind
from tensorbench.checks.conformance.subject import tiny
from tensorbench.methods import create
from tensorbench.methods.backbone import GATED_PROJECTIONS, PROJECTIONS, Geometry, Site
from tensorbench.methods.errors import UserError

from ...messages import naming
from ..local_checkpoints import batch, edit, features, model_of, saved, whole_model_of

#: The kinds that are not checked here, since tests/bench/conformance checks them with all methods.
MET = ("bert", "roberta", "vit", "dinov2", "timm")

#: The text kinds whose head reads the mean of the hidden states.
MEANS = ("bert", "modernbert", "t5", "mt5")

#: A method of ours on all projections.
ON_ALL = create("tenslora", variant="qkv_depth", factorization="cp", targets="qkvo+mlp").isorank(2)


@pytest.mark.parametrize("kind", [name for name in NAMES if name not in MET])
def test_a_kind_passes_the_checks(kind: str) -> None:
    findings = check_kind(kind, [ON_ALL])
    assert [(finding.check, finding.message) for finding in findings if finding.status != "passed"] == []
    assert len(findings) > 10


def inputs_of(kind: str, size: int = 16) -> dict[str, Tensor]:
    return batch("vit" if KINDS[kind].reads == "images" else "bert", size=size)


def expected(kind: str, model: Any, inputs: dict[str, Tensor], **more: Any) -> Tensor:
    """Returns the features that a head on this kind of model should read, from transformers' outputs."""
    if kind == "vit_mae":
        # This model masks patches at random; a ViT with the same weights does not.
        config = transformers.ViTConfig(**{**model.config.to_dict(), "model_type": "vit"})
        vit = transformers.ViTModel(config, add_pooling_layer=False).eval()
        vit.load_state_dict(model.state_dict())
        model = vit
    with torch.no_grad():
        outputs = model(**inputs, **more)
    states = outputs.last_hidden_state
    if KINDS[kind].pool is pooling.last_token:
        return torch.stack((states[0, -1], states[1, 3]))
    if kind in MEANS:
        return torch.stack((states[0].mean(0), states[1, :4].mean(0)))
    if kind in ("beit", "clip_vision_model", "siglip_vision_model"):
        return outputs.pooler_output
    return states[:, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_gives_the_features_of_transformers(kind: str, tmp_path: Path) -> None:
    model, inputs = model_of(kind), inputs_of(kind)
    backbone = saved(model, tmp_path)
    about = kind in (*MEANS, "siglip_vision_model") or KINDS[kind].pool is pooling.last_token
    tolerance = {"rtol": 0.0, "atol": 5e-6 if about else 0.0}
    torch.testing.assert_close(features(backbone, inputs), expected(kind, model, inputs), **tolerance)
    assert backbone.info == describe(BackboneSpec(local=tmp_path))
    assert backbone.info.kind == kind
    if KINDS[kind].positions_after_padding:
        # Of 18 positions, two are up to the padding token's id.
        assert backbone.info.input.max_tokens == 16


@pytest.mark.parametrize(
    "kind", ["vit", "dinov2", "deit", "dinov2_with_registers", "vit_mae", "clip_vision_model", "dinov3_vit"]
)
def test_another_image_size_is_that_of_transformers(kind: str, tmp_path: Path) -> None:
    model, inputs = model_of(kind), inputs_of(kind, size=32)
    backbone = saved(model, tmp_path, image_size=32)
    more = {} if kind.startswith("dinov2") else {"interpolate_pos_encoding": True}
    torch.testing.assert_close(features(backbone, inputs), expected(kind, model, inputs, **more))


def test_the_sides_of_patches_may_be_a_list(tmp_path: Path) -> None:
    inputs = inputs_of("vit", size=32)
    expected = features(saved(model_of("vit"), tmp_path, image_size=32), inputs)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"patch_size": [config["patch_size"]] * 2}))
    assert torch.equal(features(load(BackboneSpec(local=tmp_path, image_size=32)), inputs), expected)


@pytest.mark.parametrize(
    ("model_type", "part"), [("CLIP", "clip_vision_model"), ("Siglip", "siglip_vision_model")]
)
def test_a_vision_tower_is_taken_out_of_a_whole_model(model_type: str, part: str, tmp_path: Path) -> None:
    model = whole_model_of(model_type, part)
    backbone, inputs = saved(model, tmp_path), inputs_of(part)
    assert backbone.info.kind == part
    torch.testing.assert_close(features(backbone, inputs), expected(part, model.vision_model, inputs))
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["vision_config"]["num_hidden_layers"] = 10**7
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=naming("num_hidden_layers", 1, "1,000")):
        describe(BackboneSpec(local=tmp_path))


@pytest.mark.parametrize(
    ("kind", "model_class", "trained_tokens", "projections"),
    [
        ("t5", "T5ForConditionalGeneration", 512, PROJECTIONS),
        ("mt5", "MT5ForConditionalGeneration", 1024, GATED_PROJECTIONS),
    ],
)
def test_an_encoder_is_taken_out_of_a_whole_t5(
    kind: str, model_class: str, trained_tokens: int, projections: tuple[str, ...], tmp_path: Path
) -> None:
    config = tiny(kind)._config()
    config.is_encoder_decoder = True
    model, inputs = getattr(transformers, model_class)(config).eval(), inputs_of(kind)
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    # Published configurations state no longest text, because positions are relative.
    settings = json.loads(file.read_text())
    del settings["max_position_embeddings"]
    file.write_text(json.dumps(settings))
    backbone = load(BackboneSpec(local=tmp_path))
    assert (backbone.info.kind, backbone.projections) == (kind, projections)
    assert backbone.info.input.max_tokens == trained_tokens
    torch.testing.assert_close(features(backbone, inputs), expected(kind, model.encoder, inputs))


def test_a_gated_mlp_of_dinov2_is_refused_by_name(tmp_path: Path) -> None:
    backbone = saved(model_of("dinov2_with_registers", use_swiglu_ffn=True), tmp_path)
    lora = create("lora", rank=2, targets="qkvo+mlp")
    with pytest.raises(UserError, match=naming("fc1, fc2", "query")):
        lora.attach(backbone, torch.Generator())


def test_split_layers_are_the_fused_ones_in_parts(tmp_path: Path) -> None:
    model = model_of("modernbert")
    backbone = saved(model, tmp_path)
    layer = model.layers[1]
    for parts, fused in ((("query", "key", "value"), layer.attn.Wqkv), (("gate", "fc1"), layer.mlp.Wi)):
        layers: list[Any] = [backbone.module.get_submodule(backbone.path(Site(1, part))) for part in parts]
        assert torch.equal(torch.cat([part_layer.weight for part_layer in layers]), fused.weight)


def test_a_gate_of_its_own_is_a_site(tmp_path: Path) -> None:
    model, inputs = model_of("dinov3_vit", use_gated_mlp=True), inputs_of("dinov3_vit")
    backbone = saved(model, tmp_path)
    assert backbone.projections == GATED_PROJECTIONS
    assert torch.equal(features(backbone, inputs), expected("dinov3_vit", model, inputs))
    lora = create("lora", rank=2, targets="qkvo+mlp")
    adapter = lora.attach(backbone, torch.Generator())
    assert Site(1, "gate") in adapter.bases


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("bert", {"model_type": "robert"}, naming("'robert'", "'roberta'")),
        ("bert", {"model_type": "mpnet"}, "'mpnet'(?!.*did you mean).* there are bert, "),
        ("vit", {"model_type": "swinv2"}, naming("'swinv2'", "width")),
        ("vit", {"model_type": "convnext"}, naming("'convnext'", "convolutions")),
        ("bert", {"model_type": "albert"}, naming("'albert'", "share")),
        ("siglip_vision_model", {"vision_use_head": False}, "vision_use_head should be true, got False"),
        ("beit", {"use_mean_pooling": False}, "should be true, got False: .* the mean of the patches"),
    ],
)
def test_unknown_kinds_are_refused(kind: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    settings = tiny(kind)._config().to_dict() | changes
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=message):
        describe(BackboneSpec(local=tmp_path))


def test_masks_that_an_older_transformers_stored_are_passed_over(tmp_path: Path) -> None:
    model, inputs = model_of("gpt2"), inputs_of("gpt2")
    model.save_pretrained(tmp_path)
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 16, 16) for layer in range(2)}
    edit(tmp_path, add=masks | {f"h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(2)})
    backbone = load(BackboneSpec(local=tmp_path))
    torch.testing.assert_close(features(backbone, inputs), expected("gpt2", model, inputs))


@pytest.mark.parametrize("kind", ["distilbert", "t5"])
def test_models_without_segments_ignore_them(kind: str, tmp_path: Path) -> None:
    backbone = tiny(kind).load(None)
    inputs = inputs_of(kind)
    with_segments = features(backbone, inputs | {"token_type_ids": torch.ones_like(inputs["input_ids"])})
    assert torch.equal(with_segments, features(backbone, inputs))


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
    for size, near in ((230, 224), (15, 16)):
        with pytest.raises(UserError, match=naming("image_size", size, "patch size", 16, near)):
            describe(BackboneSpec(timm="vit_tiny_patch16_224", local=file, image_size=size))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("swin_tiny_patch4_window7_224", "SwinTransformer"),
        ("convnext_atto", "ConvNeXt"),
        ("eva02_tiny_patch14_224", "224 pixels"),
        ("vit_bse_patch16_224", naming("'vit_bse_patch16_224'", "vit_base_patch16_224")),
        ("vit_tiny_patch16_224.typo", naming("'vit_tiny_patch16_224.typo'", "patch16_224.augreg_in21k")),
        ("vit_base_patch16_224_in21k", "timm has no model"),
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
