"""Tests labels of rows, which are in tables but in no id, and sweeps (`each`) over fields of the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorbench.plan.pairs import Part

from ..local_checkpoints import encoder
from ..local_checkpoints import write as checkpoint
from ..search.scripted import choose
from ..toy_suites import DIGITS, VISION, plan, suite

LABELLED = {
    "tasks": [{**DIGITS, "label": "Digits (8×8)"}],
    "backbones": [{"name": "tiny-random-vit", "label": "ViT, random"}],
    "methods": [{"method": "lora", "rank": 2, "label": "ours"}, {"method": "head_only"}],
}
PLAIN = {
    "tasks": [DIGITS],
    "backbones": ["tiny-random-vit"],
    "methods": [{"method": "lora", "rank": 2}, "head_only"],
}


def test_labels_are_in_the_rows_and_in_no_id() -> None:
    made, plain = plan(**LABELLED), plan(**PLAIN)
    assert [(row.method, row.title, row.backbone, row.task) for row in made.rows] == [
        ("ours", "ours", "ViT, random", "Digits (8×8)"),
        ("head only", "head only", "ViT, random", "Digits (8×8)"),
    ]
    assert made.trials == plain.trials
    assert [trial.id for trial in made.trials] == [trial.id for trial in plain.trials]
    stored = made.stored().rows[0]
    assert (stored.method, stored.backbone, stored.task, stored.family) == (
        *("ours", "ViT, random", "Digits (8×8)"),
        "lora",
    )


def test_rows_of_one_method_are_told_apart_by_the_ranks_that_the_suite_gives() -> None:
    budget = {"parameters": 2000, "tolerance": 0.9}
    rows: list[dict[str, Any]] = [
        {"ranks": {"layer": 1}},
        {"ranks": [4, 4, 3, 1], "budgets": [budget]},
        {"ranks": {"projection": 1}, "label": "ours"},
    ]
    methods = [{"method": "tenslora", "variant": "qkv_depth", **row} for row in ({}, *rows)]
    made = plan(**{**PLAIN, "methods": ["lora", *methods], "budgets": [budget]})
    assert [(row.table_name, row.allocation) for row in made.rows if len(row.ranks) == 4] == [
        ("TensLoRA qkv_depth", ()),
        ("TensLoRA qkv_depth [layer=1]", ("layer",)),
        ("TensLoRA qkv_depth r=4,4,3,1", ("input", "output", "projection", "layer")),
        ("ours", ("projection",)),
    ]


def test_a_part_is_named_by_label_or_name() -> None:
    made = plan(**LABELLED)
    for selection in (
        {"methods": ["ours"], "tasks": ["Digits (8×8)"], "backbones": ["ViT, random"]},
        {"methods": ["LoRA"], "tasks": ["digits"], "backbones": ["tiny-random-vit"]},
    ):
        assert [row.method for row in made.select(Part(**selection)).rows] == ["ours"]


def test_a_search_is_shown_by_labels() -> None:
    choices, _ = choose(suite(**{**VISION, **LABELLED, "search": {"trials": 1}}), lambda _: (1.0, 0.5))
    assert choices.ranks[0].name == "ours · fixed size · Digits (8×8) · ViT, random"


def test_labels_distinguish_two_folders_of_one_name(tmp_path: Path) -> None:
    rows = []
    for seed, folder in enumerate(("a", "b")):
        checkpoint(tmp_path / folder / "model", "vit", encoder("vit", seed=seed))
        rows.append({"local": str(tmp_path / folder / "model"), "label": folder})
    made = plan(backbones=rows)
    assert [row.backbone for row in made.rows] == ["a", "b"]
    assert [cell.own.backbone for cell in made.cells] == ["local:model (a)", "local:model (b)"]


def test_each_sweeps_fields_of_the_recipe_beside_options() -> None:
    sweep = {"training": {"lr": [1e-3, 3e-3]}, "rank": [1, 2]}
    made = plan(methods=[{"method": "lora", "training": {"clip": 1}, "each": sweep}])
    settings = [(trial.method["rank"], trial.recipe.lr, trial.recipe.clip) for trial in made.trials]
    assert sorted(settings) == [(1, 1e-3, 1), (1, 3e-3, 1), (2, 1e-3, 1), (2, 3e-3, 1)]
    assert {row.method for row in made.rows} == {"LoRA [clip=1.0, lr=0.001]", "LoRA [clip=1.0, lr=0.003]"}
    by_hand = [
        {"method": "lora", "rank": rank, "training": {"clip": 1, "lr": lr}}
        for lr in (1e-3, 3e-3)
        for rank in (1, 2)
    ]
    assert [trial.id for trial in plan(methods=by_hand).trials] == [trial.id for trial in made.trials]
    flat = {"training.lr": [1e-3, 3e-3], "rank": [1, 2]}
    assert plan(methods=[{"method": "lora", "training": {"clip": 1}, "each": flat}]).rows == made.rows
    labelled = plan(methods=[{"method": "lora", "rank": 2, "each": {"training.lr": [1e-3]}, "label": "ours"}])
    assert [row.method for row in labelled.rows] == ["ours [lr=0.001]"]
