"""Tests which conformance cases exist for a method, and how their results are reported."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from pydantic import PositiveInt
from rich.console import Console

from tensorbench.checks.conformance import (
    BACKBONES,
    CHECKS,
    UNEQUAL,
    CheckResult,
    conformance_cases,
    run_checks,
    variations,
)
from tensorbench.checks.conformance.checked import of_methods
from tensorbench.cli.tables import print_tables
from tensorbench.methods import METHODS, create
from tensorbench.methods.errors import UnknownNameError, UserError

from .faulty import Pairs


def test_every_pair_of_options_is_shown() -> None:
    presets = METHODS.get("tenslora").presets()
    shown = [*presets, *variations(presets)]
    for variant in ("att", "qkv", "depth", "att_qkv", "att_depth", "qkv_depth", "att_qkv_depth"):
        for field, values in {
            "heads": ("aligned", "interleaved"),
            "init": ("orthogonal", "normal", "kaiming_uniform"),
            "factorization": ("tucker", "cp", "tt"),
        }.items():
            met = {getattr(m, field) for m in shown if m.variant == variant}
            # Without a head mode the order of heads changes nothing, so one case covers both orders.
            expected = set(values) if field != "heads" or "att" in variant else set()
            assert expected <= met, (variant, field)
    assert len({m.label for m in shown}) == len(shown)
    # A full grid of 7 · 3 · 3 · 2 · 3 combinations would cover the pairs as well.
    assert len(shown) < 40


def test_cases_can_be_narrowed() -> None:
    cases = conformance_cases("lora", backbones=["vit"], checks=["start", "merge"], quick=True)
    assert [(case.backbone, case.check) for case in cases] == [("vit", "start"), ("vit", "merge")]
    assert str(cases[0]) == "LoRA-vit-start"
    assert not any(CHECKS[case.check].slow for case in conformance_cases("lora", quick=True))


def test_checks_of_the_method_alone_run_on_the_first_kind_of_backbone() -> None:
    kinds = BACKBONES[1:]
    kinds_of: dict[str, list[str]] = {}
    for case in conformance_cases(create("lora", rank=2), backbones=kinds):
        kinds_of.setdefault(case.check, []).append(case.backbone)
    for name, check in CHECKS.items():
        expected = list(kinds if check.on_each else kinds[:1]) if check.default else []
        assert kinds_of.get(name, []) == expected, name
    # At least the checks that run the backbone's own modules run on each kind.
    assert {"start", "training", "merge", "detach", "transients", "checkpointing", "state"} <= {
        name for name in kinds_of if CHECKS[name].on_each
    }


def test_presets_adapt_the_mlp_beyond_the_first_kind() -> None:
    fc2 = {
        case.backbone: "fc2" in case.method.projections
        for case in conformance_cases("lora", checks=["merge"], quick=True)
    }
    assert fc2 == {kind: kind != BACKBONES[0] for kind in (*BACKBONES, *UNEQUAL)}
    # One of these presets needs square weights.
    kept = conformance_cases("tt_lora", backbones=["bert", "vit"], checks=["merge"], quick=True)
    assert [str(case) for case in kept[:2]] == [str(case).replace("-vit-", "-bert-") for case in kept[2:]]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="'tenslora'"):
        conformance_cases("tenslroa")
    with pytest.raises(UserError, match=r"strat.*identity"):
        conformance_cases("lora", checks=["strat"])


def test_a_method_whose_option_has_no_default_is_asked_for_presets() -> None:
    class Required(Pairs):
        width: PositiveInt

    with pytest.raises(UserError, match=r"pairs.*presets.*width"):
        conformance_cases(Required)


def test_random_state_and_threads_are_left_alone() -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    results = run_checks(create("lora", rank=1), backbones=["vit"], checks=["seeds", "training", "dropout"])
    assert [result.status for result in results] == ["passed"] * 3
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_the_table_shows_every_outcome() -> None:
    results = [
        CheckResult("start", "passed", "", "A", "bert", 0.1),
        CheckResult("start", "failed", "outputs [differ]", "A", "vit", 0.1),
        CheckResult("scale", "passed", "", "A", "bert", 0.1),
        CheckResult("scale", "not applicable", "has no scale", "B", "bert", 0.1),
        CheckResult("merge", "not applicable", "has no scale", "B", "bert", 0.1),
    ]
    console = Console(width=80, record=True)
    print_tables(of_methods(results), console=console)
    text = console.export_text()
    assert [line.split() for line in text.splitlines() if line.startswith((" ✗", " ✓"))] == [
        ["✗", "A", "2", "1", "–"],
        ["✓", "B", "–", "–", "2"],
    ]
    assert "The checks: start, scale, merge." in text
    assert re.search(r"✗ A .*vit.*outputs \[differ\]", text)
    assert re.search(r"– scale, merge .*\(B\)", text)
    assert re.search(r"2 passed, 1 failed, 2 .*bert, vit", text)


def test_checkpointing_brings_no_warning_to_the_user() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        (result,) = run_checks(create("lora", rank=1), backbones=["bert"], checks=["checkpointing"])
    assert result.status == "passed", result.message


@pytest.mark.parametrize(
    ("method", "status", "message"),
    [
        ({"name": "lora"}, "passed", "with dropout: peft's dropout draws from the backbone's stream"),
        ({"name": "lora", "dropout": 0.1}, "not applicable", "peft's dropout draws"),
        ({"name": "peft", "type": "VERA"}, "passed", ""),
        (
            {"name": "peft", "type": "VERA", "config": {"vera_dropout": 0.1}},
            "not applicable",
            "peft's vera_dropout draws from the backbone's stream",
        ),
        ({"name": "peft", "type": "LOKR"}, "not applicable", "peft's LoKr draws a number at every layer"),
        ({"name": "peft", "type": "PVERA"}, "not applicable", "peft's PVERA draws its update anew"),
        ({"name": "fact_tt"}, "passed", ""),
    ],
    ids=str,
)
def test_methods_that_shift_the_backbones_dropout_say_so(
    method: dict[str, Any], status: str, message: str
) -> None:
    name, options = method["name"], {key: value for key, value in method.items() if key != "name"}
    (result,) = run_checks(create(name, **options), backbones=["bert"], checks=["streams"])
    assert result.status == status
    assert result.message.startswith(message)
    assert bool(result.message) == bool(message)
