"""Tests that checkpoints of transformers are loaded exactly, or refused with the field or file at fault."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tensorbench.backbones import BackboneSpec, describe, load
from tensorbench.backbones.inputs import ImageInput
from tensorbench.backbones.random_weights import byte_tokenizer
from tensorbench.machine.files import sha256_of_all
from tensorbench.methods.backbone import Site
from tensorbench.methods.errors import UserError

from ...messages import naming
from ..hub_stand_in import client
from ..local_checkpoints import KINDS, batch, edit, encoder, features, text_input_of, whole_model_of, write


def local(folder: Path, **more: Any) -> BackboneSpec:
    return BackboneSpec(local=folder, **more)


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


def test_query_key_and_value_are_not_exchanged(tmp_path: Path) -> None:
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
    with pytest.raises(UserError, match=r"no site 2\.query"):
        backbone.path(Site(2, "query"))


#: The kind and version of a checkpoint, the weights that are removed, those that are added, and the message.
BROKEN: list[tuple[str, int, str, dict[str, torch.Tensor], str]] = [
    ("vit", 4, "1.attention.attention.query.weight", {}, "lacks .* random: layers.1.attention.q_proj.weight"),
    ("vit", 5, "0.attention.o_proj.bias", {}, "lacks .* random: layers.0.attention.o_proj.bias"),
    ("dinov2", 4, "mlp.fc1.weight", {}, "lacks .* random: encoder.layer.0.mlp.fc1.weight"),
    ("bert", 4, "attention.self.value", {}, "random: encoder.layer.0.attention.self.value.bias"),
    ("roberta", 5, "position_embeddings", {}, "random: embeddings.position_embeddings.weight"),
    ("dinov2", 5, "attention.", {"layer.0.attn.q.bias": torch.zeros(16)}, r"weights.*k_proj.* \d+ more"),
    (
        *("bert", 5, ""),
        {"encoder.layer.0.attention.self.distance_embedding.weight": torch.zeros(3, 8)},
        naming("encoder.layer.0", "distance_embedding"),
    ),
    ("bert", 5, "", {"encoder.layer.0.output.dense.weight": torch.zeros(16, 25)}, "does not load"),
]


@pytest.mark.parametrize(("kind", "version", "drop", "add", "message"), BROKEN)
def test_weights_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, kind: str, version: int, drop: str, add: dict[str, torch.Tensor], message: str
) -> None:
    folder = write(tmp_path / "model", kind, encoder(kind), version=version)
    edit(folder, drop=drop, add=add)
    with pytest.raises(UserError, match=message):
        load(local(folder))


def test_only_the_mask_token_may_be_missing(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "dinov2", encoder("dinov2"))
    edit(folder, drop="mask_token")
    load(local(folder))


@pytest.mark.parametrize(
    ("settings", "mean", "std"),
    [
        ({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0)),
        ({"do_normalize": False, "do_rescale": True, "image_mean": [0.5] * 3}, (0.0,) * 3, (1.0,) * 3),
    ],
)
def test_preprocessing_is_read_from_the_folder(
    tmp_path: Path, settings: dict[str, Any], mean: Any, std: Any
) -> None:
    folder = write(tmp_path / "model", "vit", encoder("vit"))
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert describe(local(folder)).input == ImageInput(32, mean, std)


def test_outputs_have_names_whatever_the_config_says(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "bert", encoder("bert", return_dict=False))
    assert json.loads((folder / "config.json").read_text())["return_dict"] is False
    assert load(local(folder)).module(**batch("bert")).shape == (2, 2)


def test_half_precision_checkpoints_are_used_in_float32(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "bert", encoder("bert").bfloat16())
    backbone = load(local(folder))
    assert {parameter.dtype for parameter in backbone.module.parameters()} == {torch.float32}


def test_dropout_stays_as_in_the_checkpoint(tmp_path: Path) -> None:
    backbone = load(local(write(tmp_path / "model", "vit", encoder("vit"))))
    inputs = batch("vit")
    assert torch.equal(backbone.module(**inputs), backbone.module(**inputs))
    backbone.module.train()
    assert not torch.equal(backbone.module(**inputs), backbone.module(**inputs))


def test_preprocessing_is_read_from_where_transformers_writes_it_beside_a_tokenizer(tmp_path: Path) -> None:
    whole_model_of("CLIP", "clip_vision_model").save_pretrained(tmp_path)
    images = transformers.CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[1.0, 1.0, 1.0])
    processor = transformers.CLIPProcessor(image_processor=images, tokenizer=byte_tokenizer(64))
    processor.save_pretrained(tmp_path)
    for _ in range(2):
        image_input = describe(local(tmp_path)).input
        assert isinstance(image_input, ImageInput)
        assert (image_input.mean, image_input.std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
        # Like transformers, nested settings take precedence over a separate preprocessor file.
        (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')


@pytest.mark.parametrize(
    "name", ["added_tokens.json", "sentencepiece.bpe.model", "spiece.model", "spm.model", "merges.txt"]
)
def test_the_tokenizer_s_hash_follows_every_file_of_it(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "model", "bert", encoder("bert"))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n")

    hashes = [text_input_of(folder).tokenizer_hash]
    for content in ("{}", "{ }"):
        (folder / name).write_text(content)
        hashes.append(text_input_of(folder).tokenizer_hash)
    assert hashes[0] == f"sha256:{sha256_of_all(folder / 'vocab.txt')}"
    assert len(set(hashes)) == 3


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
    with pytest.raises(UserError, match="no folder"):
        describe(local(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        load(local(tmp_path))
    folder = write(tmp_path / "model", "bert", encoder("bert"))
    with pytest.raises(UserError, match="no tokenizer"):
        text_input_of(folder).load_tokenizer()
    (folder / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UserError, match=naming("'mamba'", "bert")):
        describe(local(folder))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("preprocessor_config.json", b"{", "Expecting property name"),
        ("preprocessor_config.json", b"\xff", "'utf-8' codec"),
        ("preprocessor_config.json", b"[1]", naming("JSON", "[1]")),
        (
            "preprocessor_config.json",
            b'{"image_mean": [0.5]}',
            r"image_mean should be three .*\(got \[0.5\]\)",
        ),
        ("preprocessor_config.json", b'{"image_std": 0.5}', r"image_std should be three .*\(got 0.5\)"),
        ("preprocessor_config.json", b'{"do_rescale": false}', naming("do_rescale", 0, 255)),
        (
            "preprocessor_config.json",
            b'{"rescale_factor": 0.00784313725490196}',
            naming("rescale_factor", 1, 255, 0, 1),
        ),
        ("config.json", b"[1]", naming("JSON", "[1]")),
        ("config.json", b'{"model_type": "vit", "hidden_size": "x"}', "hidden_size.*got str"),
        ("config.json", b'{"model_type": "vit", "patch_size": 0}', naming("patch_size", 1, "4,096")),
        ("config.json", b'{"model_type": "vit", "intermediate_size": -1}', naming("intermediate_size", 1)),
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
    with pytest.raises(UserError, match=naming("tokenizer", folder, "Error")):
        text_input_of(folder).load_tokenizer()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=naming(folder, "Error")):
        load(local(folder))


def test_a_token_beyond_the_model_s_embeddings_is_refused_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "bert", encoder("bert", vocab_size=261))
    tokenizer = byte_tokenizer(16)
    tokenizer.add_special_tokens({"pad_token": "<260>"})
    # The tokenizer adds this token only where the text contains it.
    tokenizer.add_special_tokens({"additional_special_tokens": ["<261>"]})
    tokenizer.save_pretrained(folder)
    text_input_of(folder)
    for more in ({"unk_token": "<262>"}, {"pad_token": "<263>"}):
        tokenizer.add_special_tokens(more)
        tokenizer.save_pretrained(folder)
        (token,) = more.values()
        message = (
            f"in {folder} has the token '{token}' with the id {token[1:-1]}, but the model has 261 tokens"
        )
        for use in (describe, load):
            with pytest.raises(UserError, match=re.escape(message)):
                use(local(folder))


def test_a_word_beyond_the_model_s_embeddings_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "bert", encoder("bert"))
    byte_tokenizer(16).save_pretrained(folder)
    with pytest.raises(UserError, match=r"'.'.*\b259\b.*\b50\b"):
        describe(local(folder))


@pytest.mark.parametrize("keep", [slice(0), slice(4), slice(-1)], ids=["empty", "no header", "cut off"])
def test_weights_that_are_not_whole_are_refused_by_file(tmp_path: Path, keep: slice) -> None:
    file = write(tmp_path / "model", "bert", encoder("bert")) / "model.safetensors"
    file.write_bytes(file.read_bytes()[keep])
    with pytest.raises(UserError, match=naming(file, "safetensors")):
        load(local(file.parent))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Path]:
    """Makes a hub cache with one model, switches the network off, and returns the cache's folder."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--me--tiny"
    write(repository / "snapshots" / commit, "bert", encoder("bert"), version=4)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    with client(tmp_path, "http://127.0.0.1:9", offline=True):
        yield tmp_path


def test_a_hub_model_is_named_by_its_commit(hub: Path) -> None:
    backbone = load(BackboneSpec(hub="me/tiny"))
    assert backbone.info.weights_hash == "hub:me/tiny@0123456789abcdef0123456789abcdef01234567"
    assert backbone.module(**batch("bert")).shape == (2, 2)


def test_weights_that_are_not_in_the_cache_yet_are_to_be_fetched(hub: Path) -> None:
    next(hub.rglob("model.safetensors")).unlink()
    assert describe(BackboneSpec(hub="me/tiny")).kind == "bert"
    with pytest.raises(UserError, match="tensorbench tools fetch"):
        load(BackboneSpec(hub="me/tiny"))


def test_without_network_the_message_says_what_to_do(hub: Path) -> None:
    for spec in (BackboneSpec(hub="me/other"), BackboneSpec(timm="vit_tiny_patch16_224")):
        with pytest.raises(UserError, match=r"(?s)hf download \S+.*`local:`"):
            load(spec)
    with pytest.raises(UserError, match="hub id"):
        describe(BackboneSpec(hub="no spaces please"))


def replacing(text: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("normalizer", {"type": "Sequence", "normalizers": [replacing("a", "aa")] * 40}, "1,000 times"),
        ("decoder", {"type": "Sequence", "decoders": [replacing("a", "a" * 99)] * 9}, "1,000 times"),
        ("normalizer", {"type": "Prepend", "prepend": "a" * 1001}, "1,000 times"),
        ("pre_tokenizer", {"type": "FixedLength", "length": 0}, "chunk size"),
        (
            "pre_tokenizer",
            {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
            "retry-limit",
        ),
        ("model", {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.5}, r"dropout 0\.5"),
    ],
)
def test_a_tokenizer_that_never_ends_is_refused(
    tmp_path: Path, part: str, content: dict[str, Any], message: str
) -> None:
    folder = write(tmp_path / "model", "bert", encoder("bert"))
    made = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
        part: content,
    }
    (folder / "tokenizer.json").write_text(json.dumps(made))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    text = text_input_of(folder)
    with pytest.raises(UserError, match=f"{folder}.*{message}"), text.blaming():
        text.load_tokenizer()(["a" * 60 + "!"])
