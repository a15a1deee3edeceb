"""Every registered method passes the conformance checks."""

from __future__ import annotations

from itertools import product

import pytest

from bench.backbones.base import BackboneKind
from bench.conformance import BACKBONES, CHECKS, Case, check_case, conformance_cases, run_case
from methods import METHODS, create

#: What depends on the method alone is asked of one method on every kind of backbone: this one adapts every
#: projection, cuts the MLP, has biases and dropout.
REPRESENTATIVE = create("cara", rank=4)

#: Their adapters are of modules that others put on every kind of backbone, so that one tiny kind is enough.
#: What is contracted as the others are, and a circuit of many small products, is not compiled again.
ON_ONE_KIND: dict[str, BackboneKind] = {
    "loretta_rep": "roberta",
    "loretta_adp": "bert",
    "tt_lora": "vit",
    "trac": "timm",
    "lora_xs": "dinov2",
    "metatt": "vit",
    "quanta": "bert",
    "cp": "timm",
    "dota": "roberta",
}


def _cases(name: str) -> list[Case]:
    if name not in ON_ONE_KIND:
        return conformance_cases(name, backbones=BACKBONES)  # decoders have a test of their own
    found = conformance_cases(name, backbones=[ON_ONE_KIND[name]])
    return [case for case in found if name == "loretta_adp" or not CHECKS[case.check].slow]


CASES = [
    *(case for name in METHODS for case in _cases(name)),
    *(
        case
        for kind in BACKBONES[1:]
        for case in conformance_cases(REPRESENTATIVE, backbones=[kind])
        if not CHECKS[case.check].on_each
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case: Case) -> None:
    check_case(case)


def test_generated_code() -> None:
    method = create("tenslora", variant="qkv_depth", ranks=(3, 3, 3, 3))
    (case,) = conformance_cases(method, backbones=["bert"], checks=["inductor"])
    check_case(case)


@pytest.mark.parametrize("name", list(METHODS))
def test_no_method_is_passed_over(name: str) -> None:
    for case in (case for case in CASES if case.method.name == name and case.check == "start"):
        assert run_case(case).status == "passed", run_case(case)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_preset_meets_every_kind_of_backbone(name: str) -> None:
    met = {(case.method.label, case.backbone) for case in CASES if case.method.name == name}
    for preset in METHODS.get(name).presets():
        sized = preset.isorank(4) if preset.size is None else preset
        kinds = [ON_ONE_KIND[name]] if name in ON_ONE_KIND else BACKBONES
        assert {(sized.label, kind) for kind in kinds} <= met


def test_every_check_meets_every_kind_of_backbone() -> None:
    asked = {(case.check, case.backbone) for case in CASES}
    assert asked == set(product((name for name, check in CHECKS.items() if check.default), BACKBONES))
