"""Every method on decoders: shared heads, a head size of its own, gated MLPs, split layers."""

from __future__ import annotations

import pytest

from bench.conformance import CHECKS, DECODERS, Case, check_case
from methods import METHODS, Method

#: Llama has nine query heads that share three, Qwen3 heads that do not split the hidden size; these decoders
#: compute query, key and value in one layer.
SPLIT = ("gpt2", "gpt_neox")


def templates() -> list[Method]:
    """The presets of every method, and the other way to share heads of one that has each kind of site."""
    presets = [preset for name in METHODS for preset in METHODS.get(name).presets()]
    cut = METHODS.get("cara").model_validate({"shared_heads": "cut"})
    return [template.isorank(4) if template.size is None else template for template in (*presets, cut)]


CASES = [
    Case(method, kind, check.name)
    for method in templates()
    for kind in (*DECODERS, *SPLIT)
    for check in CHECKS.values()
    # Of what depends on shapes alone Llama and Qwen3 have more to ask.
    if (check.of_shapes if kind in DECODERS else check.name == "merge")
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case: Case) -> None:
    check_case(case)
