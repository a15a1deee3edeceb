"""Tests what methods refuse: messages name the field, its value and what is accepted."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tensorbench.methods import Geometry, UserError, create

from ..messages import naming
from .oracle import BASE

SMALL = Geometry(24, 4, 2, 96)


def peft(kind: str, field: str, value: Any, *said: object) -> tuple[str, dict[str, Any], str]:
    """A row for a value of a field of peft's configuration."""
    return "peft", {"type": kind, "config": {field: value}}, naming(f"config.{field}", *said)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tenslora", {}, "'variant'"),
        ("tenslora", {"variant": "qkv_dept"}, "'qkv_depth'"),
        ("tenslora", {"variant": "qkv", "factorization": "tuker"}, "'tucker'"),
        ("tenslora", {"variant": "qkv", "head": "aligned"}, naming("'head'", "'heads'")),
        ("tenslora", {"variant": "qkv", "dropout": 1.0}, naming("dropout", 1)),
        ("tenslora", {"variant": "att", "targets": "qkvo+mlp"}, "MLP"),
        ("tenslora", {"variant": "att_qkv", "ranks": (4, 4, 4)}, naming("'att_qkv'", 4, "head_size", 3, 4)),
        ("tenslora", {"variant": "qkv", "ranks": (4, 0, 4)}, naming("ranks.1", 0, 0)),
        (
            "tenslora",
            {"variant": "qkv", "factorization": "cp", "ranks": (4, 4)},
            r"as cp takes 1 \(components\), got 2",
        ),
        (
            "tenslora",
            {"variant": "qkv_depth", "factorization": "tt", "ranks": (4,)},
            r"as tt takes 3 \(input-layer, layer-projection, projection-output\), got 1",
        ),
        # Fields that would train something else.
        peft("LORA", "init_lora_weights", "pissa_niter_4", "'pissa_niter_4' does not"),
        peft("LORA", "init_lora_weights", "olora", "'olora' does not"),
        peft("LORA", "init_lora_weights", "eva", "'eva' does not"),
        peft("LORA", "inference_mode", True, "it would train nothing"),
        peft("LORA", "exclude_modules", ["query"], "use targets"),
        peft("LORA", "target_parameters", ["weight"], "use targets"),
        peft("LORA", "layer_replication", [[0, 2]], "keeps its layers"),
        peft("LORA", "trainable_token_indices", [1], "embeddings stay frozen"),
        peft("LORA", "kasa_config", {}, "loss term"),
        peft("ADAMSS", "use_asa", True, "after every step"),
        # Values with which peft would build without end, or read what they name.
        peft("PEANUT", "depth", 10**7, "numbers up to 100 "),
        peft("LILY", "num_B", 10**6, "numbers up to 1,000 "),
        peft("OFT", "num_cayley_neumann_terms", 10**7, "numbers up to 1,000 "),
        peft("VBLORA", "num_vectors", 10**12, "numbers up to 1,000,000,000 "),
        peft("VBLORA", "num_vectors", -(10**12), "numbers up to"),
        peft("VERA", "d_initial", 1e300, "numbers up to"),
        peft("VERA", "d_initial", math.nan, "numbers up to"),
        peft("LORA", "alpha_pattern", {"(a+)+$": 1}, "a number, a word"),
        peft("LORA", "megatron_config", {"a": 1}, "a number, a word"),
        peft("LORA", "megatron_core", "this", "names a module"),
        peft("IA3", "feedforward_modules", "(a+)+$", "use targets"),
        peft("PEANUT", "act_fn", "relu" * 100, "a number, a word"),
        # Schedules and sizes.
        ("peft", {"type": "ADALORA", "rank": 4, "config": {"init_r": 4}}, "config.init_r"),
        peft("ADALORA", "total_step", 9),
        peft("ADALORA", "r", 9, "cannot"),
        peft("ADALORA", "tinit", -1, "at least 0"),
        peft("LILY", "num_B", 1, "at least 2"),
    ],
)
def test_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "geometry", "message"),
    [
        ("cdka", {"rank": 2, "r1": 7}, BASE, r"r1 should divide .*got 7"),
        ("cdka", {"rank": 2, "r2": 7}, BASE, r"r2 should divide .*got 7"),
        ("kadaptation", {"rank": 2, "products": 7}, BASE, naming("products", 7)),
        ("lora_xs", {"rank": 25, "targets": "qv"}, SMALL, r"rank is 25.* 24"),
        ("quanta", {"axes": (1,)}, SMALL, r"axes of 1 .*2 to 23"),
        ("tt_lora", {"rank": 2, "form": "reconstruction", "targets": "qkvo+mlp"}, SMALL, "fc1 is 96 × 24"),
        ("peft", {"type": "VERA", "rank": 10**12}, SMALL, "rank is 1,000,000,000,000, accepted is at most"),
        (
            "tenslora",
            {"variant": "att_depth", "ranks": (2, 2, 2, 2), "heads": "interleaved"},
            Geometry(12, 4, 2, 24, kv_heads=2),
            "heads: interleaved .*K=2",
        ),
    ],
)
def test_backbones(name: str, options: dict[str, Any], geometry: Geometry, message: str) -> None:
    with pytest.raises(UserError, match=message):
        create(name, **options).check(geometry, geometry.projections)
