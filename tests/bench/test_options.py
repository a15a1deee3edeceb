"""Tests options that take several values, options that select a part of a suite, and shell completion."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tensorbench.cli.options import split_names
from tensorbench.methods import UserError
from tensorbench.plan.pairs import Part
from tensorbench.plan.rows import Plan

from ..fixtures import Call
from .toy_suites import DIGITS, MOVIES, VISION, plan, write

BOTH: dict[str, Any] = {
    **VISION,
    "backbones": ["tiny-random-vit", "tiny-random-bert"],
    "tasks": [DIGITS, MOVIES],
    "methods": ["head_only", "lora", {"method": "lora", "scale": 2.0, "dropout": 0.1}],
    "budgets": [{"isorank": 2}, {"parameters": 1000}],
    "seeds": [0, 1, 2],
}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("lora,head_only", ["lora", "head_only"]),
        ("lora, head_only", ["lora", "head_only"]),
        ("LoRA (scale=2.0, dropout=0.1),head_only", ["LoRA (scale=2.0, dropout=0.1)", "head_only"]),
        ("LoRA [augmentation=[flip, crop], lr=0.1],a", ["LoRA [augmentation=[flip, crop], lr=0.1]", "a"]),
        ("LoRA [lr=0.1, augmentation=[flip, crop]],a", ["LoRA [lr=0.1, augmentation=[flip, crop]]", "a"]),
        ("LORA (config={'a': 1, 'b': (2, 3)}), a", ["LORA (config={'a': 1, 'b': (2, 3)})", "a"]),
        ("30,000 parameters,fixed size", ["30,000 parameters", "fixed size"]),
        ("1,000,000 parameters", ["1,000,000 parameters"]),
        ("50,000 parameters,200,000 parameters", ["50,000 parameters", "200,000 parameters"]),
        ("1000 parameters,500 parameters", ["1000 parameters", "500 parameters"]),
        ("isoparameters 4,500 parameters", ["isoparameters 4", "500 parameters"]),
        ("isorank 4,isorank 16", ["isorank 4", "isorank 16"]),
        (",a,, b", ["", "a", "", "b"]),
        ("", [""]),
    ],
)
def test_names_are_parted_at_commas_between_them(text: str, names: list[str]) -> None:
    assert split_names(text) == names


def cells(made: Plan) -> set[tuple[str, str, str | None]]:
    return {(row.backbone, row.method, row.budget or None) for row in made.rows}


def test_a_part_of_a_suite_is_picked_by_backbone_and_budget() -> None:
    full_plan = plan(BOTH)
    vit = full_plan.select(Part(backbones=["tiny-random-vit"]))
    assert {row.backbone for row in vit.rows} == {"tiny-random-vit"}
    for name in ("1,000 parameters", "1000 parameters", "parameters"):
        picked = full_plan.select(Part(methods=["LoRA"], budgets=[name], backbones=["tiny-random-bert"]))
        assert {budget for _, _, budget in cells(picked)} == {"1,000 parameters"}
        assert {backbone for backbone, _, _ in cells(picked)} == {"tiny-random-bert"}
    assert {method for _, method, _ in cells(full_plan.select(Part(budgets=["fixed size"])))} == {"head only"}
    assert cells(full_plan.select(Part(budgets=["fixed size", "isorank", "parameters"]))) == cells(full_plan)


@pytest.mark.parametrize(
    ("picked", "message"),
    [
        ({"backbones": ["vit"]}, "unknown backbone of this suite 'vit'"),
        ({"budgets": ["isorank 3"]}, "unknown budget of this suite 'isorank 3': did you mean 'isorank 2'"),
        ({"tasks": [""]}, "unknown task of this suite ''"),
        (
            {"tasks": ["digits"], "backbones": ["tiny-random-bert"]},
            "suite 'toy' has no row of all of these: task digits; backbone tiny-random-bert",
        ),
    ],
)
def test_a_part_that_is_not_there_is_refused(picked: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        plan(BOTH).select(Part(**picked))


@pytest.mark.parametrize(
    "filters",
    [
        ("--method", "head_only,LoRA", "--seed", "0,2", "--task", "digits"),
        ("--method", "head_only", "--method", "LoRA", "--seed", 0, "--seed", 2, "--task", "digits"),
        ("--method", "head_only, LoRA", "--seed", "0, 2-2", "--backbone", "tiny-random-vit"),
    ],
)
def test_commas_and_repeated_options_are_the_same(
    call: Call, tmp_path: Path, filters: tuple[object, ...]
) -> None:
    read = json.loads(call("plan", write(tmp_path, BOTH), "--json", *filters).out)
    assert {row["title"] for row in read["rows"]} == {"head only", "LoRA"}
    assert {row["task"] for row in read["rows"]} == {"digits"}
    assert {trial["seed"] for trial in read["trials"]} == {0, 2}


@pytest.fixture
def complete(call: Call, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Gives tests a function that returns what bash offers for the last word of a command line."""

    def completions(line: str) -> list[str]:
        monkeypatch.setenv("_TENSORBENCH_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        return list(filter(None, call().out.split("\n")))

    return completions


def test_the_shell_completes_commands(complete: Callable[[str], list[str]]) -> None:
    assert complete("tensorbench ru") == ["run"]
