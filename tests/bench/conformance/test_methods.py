"""Runs the conformance checks on every registered method."""

from __future__ import annotations

from itertools import cycle, product

import pytest

from tensorbench.backbones.backbone import BackboneKind
from tensorbench.checks.conformance import (
    BACKBONES,
    CHECKS,
    UNEQUAL,
    Case,
    check_case,
    conformance_cases,
    run_case,
)
from tensorbench.methods import METHODS, create

#: Checks that depend on the method alone run on one kind of backbone. They run on all kinds only for this
#: method, which adapts every projection, cuts the MLP into squares, and has biases and dropout.
REPRESENTATIVE = create("cara", rank=4)

#: Methods that are tested on one kind of backbone. Their adapters consist of the same modules as those of
#: other methods, which are tested on every kind.
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
    "converged_head": "vit",
}

#: The methods whose compiled code is checked. Left out are methods that contract their tensors like another
#: one, and methods that are slow to compile because they multiply many small matrices.
COMPILED = [name for name in METHODS if name == "loretta_adp" or name not in ON_ONE_KIND]

#: Decoders that compute query, key and value in one layer, which is split when they are loaded. Llama and
#: Qwen3 have shapes of their own, and therefore more cases.
SPLIT = ("gpt2", "gpt_neox")

#: No preset has this value of `shared_heads`.
CUT = create("cara", rank=4, shared_heads="cut")

#: The methods with which no code of ours runs in the forward of a backbone.
NOT_CONTRACTED = ("full", "head_only", "lora", "peft")

#: The methods of peft whose compiled code is checked. VeRA shares matrices, and DoRA breaks the graph.
COMPILED_OF_PEFT = ("VeRA", "DoRA")


def _cases(name: str) -> list[Case]:
    kinds = [ON_ONE_KIND[name]] if name in ON_ONE_KIND else BACKBONES
    return [case for case in conformance_cases(name, backbones=kinds) if not CHECKS[case.check].slow]


def _compiled() -> list[Case]:
    # Compiling takes seconds, so each method is compiled on one kind of backbone. The methods take the kinds
    # in turn, beginning with ours, which cover every kind.
    methods = [
        method
        for name in COMPILED
        for case in conformance_cases(name, backbones=BACKBONES[:1], checks=["compiled"])
        if (method := case.method).name != "peft" or method.label in COMPILED_OF_PEFT
    ]
    methods.sort(key=lambda method: method.name in NOT_CONTRACTED)
    return [
        Case(method, kind, "compiled") for method, kind in zip(methods, cycle(BACKBONES[::-1]), strict=False)
    ]


CASES = [
    *(case for name in METHODS for case in _cases(name)),
    *_compiled(),
    *(
        case
        for kind in BACKBONES[1:]
        for case in conformance_cases(REPRESENTATIVE, backbones=[kind])
        if not CHECKS[case.check].on_each and not CHECKS[case.check].slow
    ),
]


#: Cases on decoders and T5, whose projections have unequal shapes.
UNEQUAL_CASES = [
    *(case for name in METHODS for case in conformance_cases(name, quick=True) if case.backbone in UNEQUAL),
    *(
        case
        for name in METHODS
        for case in conformance_cases(name, backbones=["bert", *SPLIT], checks=["merge"])
        if case.backbone in SPLIT
    ),
    *(Case(CUT, kind, check.name) for kind in UNEQUAL for check in CHECKS.values() if check.of_shapes),
    *(Case(CUT, kind, "merge") for kind in SPLIT),
]

#: The first kind of backbone on which each method is tested.
FIRST_KIND = {case.method.name: case.backbone for case in reversed(CASES) if case.check != "compiled"}


def _on_its_first_kind(case: Case) -> bool:
    of_all_kinds = case.method == REPRESENTATIVE
    return case.check != "compiled" and (of_all_kinds or case.backbone == FIRST_KIND[case.method.name])


@pytest.mark.parametrize(
    "case",
    [
        *(
            pytest.param(case, id=str(case), marks=() if _on_its_first_kind(case) else pytest.mark.kinds)
            for case in CASES
        ),
        *(pytest.param(case, id=str(case), marks=pytest.mark.kinds) for case in UNEQUAL_CASES),
    ],
)
def test_conformance(case: Case) -> None:
    if case.check == "start" and case.backbone not in UNEQUAL:
        # On these kinds it applies to every method, so that none is passed over.
        result = run_case(case)
        assert result.status == "passed", result
    else:
        check_case(case)


def test_no_method_is_passed_over() -> None:
    assert {case.method.name for case in CASES if case.check == "start"} == set(METHODS)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_preset_meets_every_kind_of_backbone(name: str) -> None:
    def met(kind: BackboneKind) -> list[dict[str, object]]:
        # Beyond the first kind, presets have wider targets.
        return [{**c.method.identity(), "targets": ""} for c in CASES if c.backbone == kind]

    for preset in METHODS.get(name).presets():
        sized = preset.isorank(4) if preset.size is None else preset
        for kind in [ON_ONE_KIND[name]] if name in ON_ONE_KIND else BACKBONES:
            assert {**sized.identity(), "targets": ""} in met(kind)


def test_every_check_meets_every_kind_of_backbone() -> None:
    pairs = {(case.check, case.backbone) for case in CASES}
    assert pairs == set(product((name for name, check in CHECKS.items() if check.default), BACKBONES))
