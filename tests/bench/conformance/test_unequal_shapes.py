"""Tests every method on decoders and T5, whose projections have unequal shapes."""

from __future__ import annotations

import pytest

from tensorbench.checks.conformance import CHECKS, UNEQUAL, Case, check_case, conformance_cases
from tensorbench.methods import METHODS, create

pytestmark = pytest.mark.kinds

#: Decoders that compute query, key and value in one layer, which is split when they are loaded.
SPLIT = ("gpt2", "gpt_neox")

#: No preset has this value of `shared_heads`.
CUT = create("cara", rank=4, shared_heads="cut")

CASES = [
    *(case for name in METHODS for case in conformance_cases(name, quick=True) if case.backbone in UNEQUAL),
    *(Case(CUT, kind, check.name) for kind in UNEQUAL for check in CHECKS.values() if check.of_shapes),
    # Llama and Qwen3 have shapes of their own, and therefore more cases.
    *(
        case
        for name in METHODS
        for case in conformance_cases(name, backbones=["bert", *SPLIT], checks=["merge"])
        if case.backbone in SPLIT
    ),
    *(Case(CUT, kind, "merge") for kind in SPLIT),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case: Case) -> None:
    check_case(case)
