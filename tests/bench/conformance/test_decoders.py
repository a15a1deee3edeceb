"""Tests every method on decoders, whose projections have unequal shapes."""

from __future__ import annotations

import pytest

from bench.conformance import CHECKS, DECODERS, Case, check_case
from methods import METHODS, Method

#: Decoders that compute query, key and value in one layer, which is split when they are loaded.
SPLIT = ("gpt2", "gpt_neox")


def templates() -> list[Method]:
    """The presets of every method, and CaRA with `shared_heads: cut`, since no preset has this value."""
    presets = [preset for name in METHODS for preset in METHODS.get(name).presets()]
    cut = METHODS.get("cara").model_validate({"shared_heads": "cut"})
    return [template.isorank(4) if template.size is None else template for template in (*presets, cut)]


CASES = [
    Case(method, kind, check.name)
    for method in templates()
    for kind in (*DECODERS, *SPLIT)
    for check in CHECKS.values()
    # Llama and Qwen3 have shapes of their own, and therefore more cases.
    if (check.of_shapes if kind in DECODERS else check.name == "merge")
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case: Case) -> None:
    check_case(case)
