"""Writes a small Llama to a GGUF file, as llama.cpp would write it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind


def small_gguf(
    file: Path, heads: int = 4, shared: int = 2, head_size: int = 8, layers: int = 1, tied: bool = True
) -> dict[str, np.ndarray]:
    """Writes a random Llama, quantised to Q4_1, to a file. Returns its dequantised weights by name.

    `shared` is the number of key and value heads. `heads` × `head_size` must be a multiple of 32, the size of
    a block of Q4_1.
    """
    width = heads * head_size
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(16)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(shared)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(head_size)
    tokens = ["<s>", "</s>", "<unk>", *map(chr, range(97, 123)), "ab", "cd", "ef"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b", "c d", "e f"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    draws, wrote = np.random.default_rng(0), {}
    shapes = {"token_embd": (len(tokens), width)}
    for layer in range(layers):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in _shapes(width, shared * head_size).items()}
    if not tied:
        shapes["output"] = (len(tokens), width)
    for name, shape in shapes.items():
        quantised = gguf.quants.quantize(draws.normal(size=shape).astype(np.float32), Kind.Q4_1)
        writer.add_tensor(f"{name}.weight", quantised, raw_dtype=Kind.Q4_1)
        wrote[name] = gguf.quants.dequantize(quantised, Kind.Q4_1)
    norms = [f"blk.{layer}.{name}" for layer in range(layers) for name in ("attn_norm", "ffn_norm")]
    for norm in (*norms, "output_norm"):
        writer.add_tensor(f"{norm}.weight", np.ones(width, dtype=np.float32))
    finish(writer)
    return wrote


def _shapes(width: int, shared: int) -> dict[str, tuple[int, int]]:
    return {
        "attn_q": (width, width),
        "attn_k": (shared, width),
        "attn_v": (shared, width),
        "attn_output": (width, width),
        "ffn_gate": (2 * width, width),
        "ffn_up": (2 * width, width),
        "ffn_down": (width, 2 * width),
    }


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
