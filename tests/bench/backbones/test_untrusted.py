"""Tests that a foreign checkpoint runs no code of its own, and loads no weights that its hash omits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tensorbench.backbones import BackboneSpec, describe, load
from tensorbench.methods.errors import UserError

from ...messages import naming
from ..local_checkpoints import batch, encoder, features, text_input_of, write


def saying(folder: Path, file: str = "config.json", **more: Any) -> BackboneSpec:
    """Writes a checkpoint with additional entries `more` in its configuration file `file`."""
    where = write(folder / "model", "bert", encoder("bert")) / file
    content = json.loads(where.read_text()) if where.exists() else {}
    where.write_text(json.dumps(content | more))
    return BackboneSpec(local=folder / "model")


@pytest.mark.parametrize(
    "more",
    [
        {"attn_implementation": "kernels-community/flash-attn2"},
        {"_attn_implementation": "somebody/kernel@main:attention"},
        {"attn_implementation": "paged|kernels-community/flash-attn2"},
        {"_attn_implementation": {"": "somebody/kernel"}},
        {"attn_implementation": "flash_attention_9"},
        {"experts_implementation": "somebody/kernel"},
        {"configuration_files": ["config.4.0.0.json"]},
        {"quantization_config": {"quant_method": "fp8"}},
        {"transformers_weights": "other.safetensors"},
        {"fusion_config": {"patch_embeddings": True}},
    ],
    ids=lambda more: " ".join(more),
)
def test_a_config_that_chooses_code_is_refused_by_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    from transformers import modeling_utils

    def fetched(*_: Any, **__: Any) -> None:
        pytest.fail("a kernel was fetched")

    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", fetched)
    spec = saying(tmp_path, **more)
    (field,) = more
    for use in (describe, load):
        with pytest.raises(UserError, match=f"config.json: {field} .*got "):
            use(spec)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3", "eager", "sdpa", None])
def test_the_attention_that_runs_is_torch_s_own(tmp_path: Path, attention: str | None) -> None:
    backbone = load(saying(tmp_path, attn_implementation=attention))
    assert backbone.info.geometry.encoder == describe(BackboneSpec(local=tmp_path / "model")).geometry.encoder
    config: Any = backbone.module.encoder.config
    assert config._attn_implementation == "sdpa"


def test_a_config_s_own_classes_are_not_imported(tmp_path: Path) -> None:
    spec = saying(tmp_path, auto_map={"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"})
    (tmp_path / "model" / "own.py").write_text("raise SystemExit('its code ran')")
    plain = write(tmp_path / "plain", "bert", encoder("bert"))
    inputs = batch("bert")
    with torch.no_grad():
        own, expected = features(load(spec), inputs), features(load(BackboneSpec(local=plain)), inputs)
    assert torch.equal(own, expected)


def test_a_tokenizer_s_own_class_is_refused_and_never_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("transformers asked whether to run code"))
    spec = saying(
        tmp_path,
        "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]},
    )
    (tmp_path / "model" / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    (tmp_path / "model" / "own.py").write_text("raise SystemExit('its code ran')")
    assert spec.local is not None
    with pytest.raises(UserError, match="tokenizer"):
        text_input_of(spec.local).load_tokenizer()


def test_an_adapter_in_the_folder_is_refused(tmp_path: Path) -> None:
    spec = saying(tmp_path, "adapter_config.json", peft_type="LORA", base_model_name_or_path="elsewhere")
    for use in (describe, load):
        with pytest.raises(UserError, match=r"adapter_config\.json"):
            use(spec)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"architecture": "local-dir:/etc"}, "architecture .*got 'local-dir:/etc'"),
        ({"architecture": ["test_vit"]}, "architecture .*got "),
        (
            {"architecture": "test_vit", "model_args": {"checkpoint_path": "/tmp/other.pth"}},
            naming("model_args", "'checkpoint_path'"),
        ),
        (
            {"architecture": "test_vit", "model_args": {"pretrained": True, "cache_dir": "/"}},
            naming("model_args", "'pretrained'"),
        ),
        ({"architecture": "test_vit", "model_args": ["img_size"]}, "model_args should be an object"),
        ({"architecture": "test_vit", "model_args": {"img_sise": 32}}, naming("model_args", "'img_size'")),
        ({"architecture": "test_vit", "model_args": {"device": "cuda"}}, naming("model_args", "'device'")),
        (
            {"architecture": "test_vit", "model_args": {"**(__import__('os').abort() and {}), y": None}},
            naming("model_args", "__import__"),
        ),
    ],
)
def test_a_timm_config_loads_nothing_beside_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any], message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(said))
    monkeypatch.setattr("tensorbench.backbones.timm_vit.snapshot", lambda *_, **__: tmp_path)
    with pytest.raises(UserError, match=f"config.json: {message}"):
        describe(BackboneSpec(timm="hf_hub:me/model"))


def test_a_timm_config_whose_values_timm_cannot_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "architecture": "test_vit",
        "model_args": {"embed_layer": "os.system"},
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "input_size": [3, 160, 160],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("tensorbench.backbones.timm_vit.snapshot", lambda *_, **__: tmp_path)
    with pytest.raises(UserError, match=naming("hf_hub:me/model", "timm")):
        describe(BackboneSpec(timm="hf_hub:me/model"))


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("pretrained_cfg", {"pretrained_cfg": ["mean"]}),
        ("mean", {"mean": None}),
        ("mean", {"mean": [0.5, 0.5]}),
        ("std", {"std": [0, 0, 0]}),
        ("input_size", {"input_size": "224"}),
        ("classifier", {"classifier": 5}),
        ("depth", {"model_args": {"depth": [10**9]}}),
    ],
)
def test_a_timm_config_of_another_form_is_refused_by_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, change: dict[str, Any]
) -> None:
    config = {"architecture": "test_vit", "mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 160, 160]}
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    monkeypatch.setattr("tensorbench.backbones.timm_vit.snapshot", lambda *_, **__: tmp_path)
    with pytest.raises(UserError, match=rf"config\.json: .*{field}"):
        describe(BackboneSpec(timm="hf_hub:me/model"))


def test_weights_that_timm_cannot_convert(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"model": torch.zeros(3)}, file)
    with pytest.raises(UserError, match=naming("model.safetensors")):
        load(BackboneSpec(timm="test_vit", local=file))
