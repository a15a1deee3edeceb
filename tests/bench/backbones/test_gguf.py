"""Tests that a GGUF file becomes a checkpoint folder with the dequantised weights."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file

from tensorbench.backbones import BackboneSpec, describe, load
from tensorbench.backbones.answers import unembedding_of
from tensorbench.backbones.gguf_files import convert_gguf
from tensorbench.checks.conformance.subject import tiny
from tensorbench.methods.errors import UserError

from ...messages import naming


def small_gguf(file: Path, tied: bool = True) -> dict[str, np.ndarray]:
    """Writes a random Llama, quantised to Q4_1, to a file. Returns its dequantised weights by name.

    It has one layer of four heads with two keys and values. Its width of 32 is the size of a block of Q4_1.
    """
    width, shared = 32, 16
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_context_length(16)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(8)
    tokens = ["<s>", "</s>", "<unk>", *map(chr, range(97, 123)), "ab", "cd", "ef"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b", "c d", "e f"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    draws, wrote = np.random.default_rng(0), {}
    shapes = {
        "token_embd": (len(tokens), width),
        "blk.0.attn_q": (width, width),
        "blk.0.attn_k": (shared, width),
        "blk.0.attn_v": (shared, width),
        "blk.0.attn_output": (width, width),
        "blk.0.ffn_gate": (2 * width, width),
        "blk.0.ffn_up": (2 * width, width),
        "blk.0.ffn_down": (width, 2 * width),
    }
    if not tied:
        shapes["output"] = (len(tokens), width)
    for name, shape in shapes.items():
        quantised = gguf.quants.quantize(draws.normal(size=shape).astype(np.float32), Kind.Q4_1)
        writer.add_tensor(f"{name}.weight", quantised, raw_dtype=Kind.Q4_1)
        wrote[name] = gguf.quants.dequantize(quantised, Kind.Q4_1)
    for norm in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{norm}.weight", np.ones(width, dtype=np.float32))
    finish(writer)
    return wrote


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_file_becomes_a_folder_that_loads(tmp_path: Path) -> None:
    wrote = small_gguf(tmp_path / "model.gguf")
    for local in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(UserError, match=naming("model.gguf", "model.safetensors", "convert_gguf")):
            describe(BackboneSpec(local=local))
    folder = tmp_path / "made"
    convert_gguf(tmp_path / "model.gguf", folder)
    weights = load_file(folder / "model.safetensors")
    np.testing.assert_array_equal(weights["embed_tokens.weight"], wrote["token_embd"])
    np.testing.assert_array_equal(weights["layers.0.self_attn.v_proj.weight"], wrote["blk.0.attn_v"])
    backbone = load(BackboneSpec(local=folder))
    assert backbone.info == describe(BackboneSpec(local=folder))
    assert str(backbone.geometry) == "d=32, H=4, K=2, L=1, mlp=64, gated"
    assert backbone.info.input.load_tokenizer().pad_token == "</s>"  # type: ignore[union-attr]


def test_an_output_layer_that_is_not_tied_comes_along(tmp_path: Path) -> None:
    wrote = small_gguf(tmp_path / "model.gguf", tied=False)
    convert_gguf(tmp_path / "model.gguf", tmp_path / "made")
    backbone = load(BackboneSpec(local=tmp_path / "made"))
    table = unembedding_of(backbone)
    assert table is not None
    np.testing.assert_array_equal(table, wrote["output"])


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"not a model of any kind, but some bytes")
    with pytest.raises(UserError, match=naming("model.gguf", "quantisation")):
        convert_gguf(file, tmp_path, "Q4_1")
    for kind, message in (
        (Kind.Q8_1, "quantised as Q8_1, which the package gguf cannot undo"),
        (Kind.Q8_0, ""),
    ):
        _, size = gguf.GGML_QUANT_SIZES[kind]
        writer = gguf.GGUFWriter(file, "llama")
        writer.add_tensor("blk.0.attn_q.weight", np.zeros((2, size), dtype=np.uint8), raw_dtype=kind)
        finish(writer)
        with pytest.raises(UserError, match=message or naming("Q8_0", "Q4_1")):
            convert_gguf(file, tmp_path, "Q4_1")


def _header(tensors: int, fields: int, *rest: tuple[str, int | bytes]) -> bytes:
    values = [struct.pack(f"<{form}", value) for form, value in rest]
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + b"".join(values)


_ARRAY = (("Q", 1), ("c", b"a"), ("I", gguf.GGUFValueType.ARRAY))

HEADERS = {
    "an array of a field": _header(0, 1, *_ARRAY, ("I", gguf.GGUFValueType.UINT8), ("Q", 1 << 63)),
    "arrays in an array": _header(
        0, 1, *_ARRAY, ("I", gguf.GGUFValueType.ARRAY), ("Q", 1 << 63), ("I", 0), ("Q", 0)
    ),
    "a name": _header(0, 1, ("Q", 1 << 62)),
    "fields": _header(0, 1 << 60),
    "tensors": _header(1 << 60, 0),
    "dimensions": _header(1, 0, ("Q", 1), ("c", b"a"), ("I", 1 << 31)),
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_no_count_of_a_header_is_believed_beyond_the_file(tmp_path: Path, header: bytes) -> None:
    # The package gguf would loop as often as the header's count says.
    file = tmp_path / "model.gguf"
    file.write_bytes(header)
    with pytest.raises(UserError, match=naming("model.gguf", "beyond its end")):
        convert_gguf(file, tmp_path)


def test_a_header_of_very_many_values_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorbench.backbones.gguf_files.MOST_VALUES", 1000)
    values = _header(0, 1, *_ARRAY, ("I", gguf.GGUFValueType.UINT8), ("Q", 2000)) + bytes(2000)
    (tmp_path / "model.gguf").write_bytes(values)
    with pytest.raises(UserError, match="more than 1,000 values"):
        convert_gguf(tmp_path / "model.gguf", tmp_path)


def test_a_decoder_without_padding_token_pads_by_the_one_that_ends_a_text(tmp_path: Path) -> None:
    from tensorbench.backbones.huggingface import load_tokenizer

    tokenizer = tiny("llama").describe(None).input.load_tokenizer()  # type: ignore[union-attr]
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token is None
    assert load_tokenizer(tmp_path, pads_by_end=True).pad_token == "</s>"


def test_a_header_that_states_millions_of_layers(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    small_gguf(file)
    content, key = file.read_bytes(), b"llama.block_count"
    # A key is followed by its value's type number and then the value.
    place = content.index(key) + len(key) + 4
    file.write_bytes(content[:place] + struct.pack("<I", 10**8) + content[place + 4 :])
    with pytest.raises(UserError, match="block_count"):
        convert_gguf(file, tmp_path)
