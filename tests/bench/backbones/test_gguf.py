"""A GGUF file becomes a checkpoint folder of the weights that its quantised ones stand for."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file

from bench.backbones import BackboneSpec, describe, load
from bench.backbones.gguf_files import convert_gguf
from bench.conformance.subject import tiny
from methods.errors import UserError

WIDTH = 32  # the smallest of Q4_1's blocks


def small_gguf(file: Path) -> dict[str, np.ndarray]:
    """Writes a Llama of one layer, four query heads and two of key and value; returns its weights."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_context_length(16)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(2 * WIDTH)
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
        "token_embd": (len(tokens), WIDTH),
        "blk.0.attn_q": (WIDTH, WIDTH),
        "blk.0.attn_k": (WIDTH // 2, WIDTH),
        "blk.0.attn_v": (WIDTH // 2, WIDTH),
        "blk.0.attn_output": (WIDTH, WIDTH),
        "blk.0.ffn_gate": (2 * WIDTH, WIDTH),
        "blk.0.ffn_up": (2 * WIDTH, WIDTH),
        "blk.0.ffn_down": (WIDTH, 2 * WIDTH),
    }
    for name, shape in shapes.items():
        quantised = gguf.quants.quantize(draws.normal(size=shape).astype(np.float32), Kind.Q4_1)
        writer.add_tensor(f"{name}.weight", quantised, raw_dtype=Kind.Q4_1)
        wrote[name] = gguf.quants.dequantize(quantised, Kind.Q4_1)
    for norm in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{norm}.weight", np.ones(WIDTH, dtype=np.float32))
    _finish(writer)
    return wrote


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_file_becomes_a_folder_that_loads(tmp_path: Path) -> None:
    wrote = small_gguf(tmp_path / "model.gguf")
    folder = tmp_path / "made"
    folder.mkdir()
    convert_gguf(tmp_path / "model.gguf", folder, "Q4_1")
    weights = load_file(folder / "model.safetensors")
    np.testing.assert_array_equal(weights["embed_tokens.weight"], wrote["token_embd"])
    np.testing.assert_array_equal(weights["layers.0.self_attn.v_proj.weight"], wrote["blk.0.attn_v"])
    backbone = load(BackboneSpec(local=folder))
    assert backbone.info == describe(BackboneSpec(local=folder))
    assert str(backbone.geometry) == "d=32, H=4, K=2, L=1, mlp=64, gated"
    assert backbone.info.input.load_tokenizer().pad_token == "</s>"  # type: ignore[union-attr]


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"not a model of any kind, but some bytes")
    with pytest.raises(UserError, match=r"model\.gguf is no GGUF file of a known quantisation"):
        convert_gguf(file, tmp_path, "Q4_1")
    for kind, said in ((Kind.Q8_1, "quantised as Q8_1, which the package gguf cannot undo"), (Kind.Q8_0, "")):
        _, size = gguf.GGML_QUANT_SIZES[kind]
        writer = gguf.GGUFWriter(file, "llama")
        writer.add_tensor("blk.0.attn_q.weight", np.zeros((2, size), dtype=np.uint8), raw_dtype=kind)
        _finish(writer)
        with pytest.raises(UserError, match=said or "its weights are Q8_0, the backbone is named after Q4_1"):
            convert_gguf(file, tmp_path, "Q4_1")


def test_a_decoder_without_padding_token_pads_by_the_one_that_ends_a_text(tmp_path: Path) -> None:
    from bench.backbones.huggingface import load_tokenizer

    tokenizer = tiny("llama").describe(None).input.load_tokenizer()  # type: ignore[union-attr]
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token is None
    assert load_tokenizer(tmp_path, pads_by_end=True).pad_token == "</s>"
