"""Tests plans: they have the paper's counts, and equal rows share a trial."""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tensorbench.backbones import BACKBONES
from tensorbench.methods import UserError
from tensorbench.methods.tenslora import VARIANTS
from tensorbench.plan.make import make_plan
from tensorbench.plan.pairs import Part

from ...messages import naming
from ..local_checkpoints import encoder
from ..local_checkpoints import write as checkpoint
from ..toy_suites import DIGITS, MOVIES, TEXT, VISION, plan

ROOT = Path(__file__).parents[3]

#: The numbers of parameters in Table 2 of the TensLoRA paper, and that of LoRA with rank 4, for hidden size
#: 768, 12 heads and 12 layers.
PAPER = {
    "LoRA": 221184,
    "TensLoRA att": 123840,
    "TensLoRA qkv": 74640,
    "TensLoRA depth": 18768,
    "TensLoRA att_qkv": 43728,
    "TensLoRA att_depth": 11040,
    "TensLoRA qkv_depth": 6460,
    "TensLoRA att_qkv_depth": 4460,
}


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], set[str]]:
    """Runs `plan --json` on suites/paper_counts.yaml. Returns its output and the modules that it imported.

    The command has no network. It runs in a folder without a store, because stored runs would change its
    estimates of time.
    """
    program = """
import socket, sys
def refuse(*_): raise AssertionError("network")
socket.socket.connect = refuse
from tensorbench.cli.program import main
sys.argv = ["tensorbench", "plan", sys.argv[1], "--json"]
try:
    main()
except SystemExit as end:
    assert not end.code
print(*sys.modules, sep="\\n", file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, ROOT / "suites" / "paper_counts.yaml"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path_factory.mktemp("empty"),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return json.loads(done.stdout), set(done.stderr.split())


def counts(printed: dict[str, Any], budget: str) -> dict[str, int]:
    return {row["title"]: row["parameters"] for row in printed["rows"] if row["budget"] == budget}


@pytest.mark.processes
def test_isorank_4_gives_the_counts_of_the_paper(paper: tuple[dict[str, Any], set[str]]) -> None:
    assert counts(paper[0], "isorank 4") == PAPER


@pytest.mark.processes
def test_isoparameters_are_within_3_percent_of_lora(paper: tuple[dict[str, Any], set[str]]) -> None:
    fitted = counts(paper[0], "isoparameters 4")
    assert set(fitted) == set(PAPER)
    assert all(abs(count / PAPER["LoRA"] - 1) < 0.03 for count in fitted.values())
    for row in paper[0]["rows"]:
        assert row["percent_of_lora"] == pytest.approx(100 * row["parameters"] / PAPER["LoRA"])
        if row["budget"] == "isoparameters 4":
            assert row["within"] is True
            assert row["asked"] == PAPER["LoRA"]
            assert row["ratio"] == pytest.approx(row["parameters"] / row["asked"])


@pytest.mark.processes
def test_lora_r4_is_in_both_blocks_and_runs_once(paper: tuple[dict[str, Any], set[str]]) -> None:
    rows = [row for row in paper[0]["rows"] if row["title"] == "LoRA"]
    assert [row["budget"] for row in rows] == ["isorank 4", "isoparameters 4"]
    assert rows[0]["trials"] == rows[1]["trials"]
    ids = [trial["id"] for trial in paper[0]["trials"]]
    assert len(ids) == len(set(ids)) == 15
    assert ids.count(rows[0]["trials"]["0"]) == 1


@pytest.mark.processes
def test_planning_registered_names_imports_neither_mlflow_nor_transformers(
    paper: tuple[dict[str, Any], set[str]],
) -> None:
    heavy = {"mlflow", "transformers", "timm", "peft", "datasets", "sklearn", "torchvision", "onnx"}
    assert not heavy & paper[1]


@pytest.mark.parametrize("suite", ["quickstart", {"name": "mine"}, None])
def test_what_is_no_suite_cannot_be_planned(suite: Any) -> None:
    with pytest.raises(UserError, match=naming("suite", "load_suite", f"(got {suite!r})")):
        make_plan(suite)


def test_a_part_of_another_type_is_refused() -> None:
    made = plan(methods=["lora"])
    refused = naming("part", "Part(seeds=[0])", "(got {'seeds': [0]})")
    with pytest.raises(UserError, match=refused):
        make_plan(made.suite, part={"seeds": [0]})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=refused):
        made.select({"seeds": [0]})  # type: ignore[arg-type]
    for field, value in {"seeds": 0, "studies": 1, "methods": "lora"}.items():
        with pytest.raises(UserError, match=naming(field, "a list", value)):
            Part(**{field: value})  # type: ignore[arg-type]


def test_500_trials_are_planned_within_2_seconds() -> None:
    started = time.process_time()
    made = plan(
        TEXT,
        backbones=["minilm-l6", "random-roberta-base"],
        methods=["lora", "head_only", {"method": "tenslora", "each": {"variant": list(VARIANTS)}}],
        budgets=[{"isorank": 4}, {"isoparameters": 4}, {"parameters": 60_000}],
        seeds=range(11),
    )
    assert time.process_time() - started < 2
    assert len(made.trials) >= 500


def test_trials_do_not_depend_on_the_order_of_the_suite() -> None:
    methods = ["head_only", "lora", {"method": "tenslora", "variant": "att"}]
    forth = plan(methods=methods, seeds=[0, 1], budgets=[{"isorank": 1}, {"isoparameters": 2}])
    back = plan(methods=methods[::-1], seeds=[1, 0], budgets=[{"isoparameters": 2}, {"isorank": 1}])
    assert {t.id for t in forth.trials} == {t.id for t in back.trials}
    assert len(forth.trials) == 10


@pytest.mark.parametrize(
    ("variant", "same"),
    [("qkv", True), ("depth", True), ("qkv_depth", True), ("att", False), ("att_depth", False)],
)
def test_the_order_of_heads_counts_only_where_heads_are_a_mode(variant: str, same: bool) -> None:
    made = plan(
        methods=[{"method": "tenslora", "variant": variant, "each": {"heads": ["aligned", "interleaved"]}}]
    )
    # The option has no effect here, so the two rows are one.
    assert len(made.rows) == len(made.trials) == (1 if same else 2)


def test_seeds_run_one_after_the_other_so_that_each_compares_all_methods() -> None:
    made = plan(methods=["lora", "head_only"], seeds=[3, 1])
    assert [(t.seed, t.method["method"]) for t in made.trials] == [
        (3, "lora"),
        (3, "head_only"),
        (1, "lora"),
        (1, "head_only"),
    ]


def test_rows_come_in_blocks_own_sizes_first_then_the_budgets_in_their_order() -> None:
    methods = ["lora", "head_only", {"method": "tenslora", "variant": "att"}]
    made = plan(methods=methods, budgets=[{"isorank": 3}, {"isorank": 1}])
    assert [(row.title, row.budget) for row in made.rows] == [
        ("head only", None),
        ("LoRA", "isorank 3"),
        ("TensLoRA att", "isorank 3"),
        ("LoRA", "isorank 1"),
        ("TensLoRA att", "isorank 1"),
    ]


def test_a_count_beyond_the_tolerance_is_flagged_in_plan_and_table(call: Any, tmp_path: Path) -> None:
    from ..toy_suites import write

    # LoRA's counts on this geometry are multiples of 384.
    for tolerance, within in ((0.2, True), (0.05, False)):
        (row,) = plan(budgets=[{"parameters": 1000, "tolerance": tolerance}]).rows
        assert (row.parameters, row.within) == (1152, within)
    # A distance equal to the tolerance is within it.
    (row,) = plan(budgets=[{"parameters": 2560}]).rows
    assert (row.parameters, row.ratio, row.within) == (2688, 1.05, True)
    shown = call("plan", write(tmp_path, budgets=[{"parameters": 1000}]))
    assert shown.code == 0
    assert "1.152 !" in shown.out
    assert "1 row(s) marked !" in shown.out


def test_ranks_in_part_are_judged_by_the_budget_and_need_one() -> None:
    starved = {"method": "tenslora", "variant": "qkv_depth", "ranks": {"layer": 1}}
    wide = {"isoparameters": 2, "tolerance": 0.1}
    rows = plan(methods=[starved, {**starved, "budgets": [wide], "training": {"clip": 1.0}}]).rows
    # Ranks of 9 would have 830 parameters, and 768 are requested.
    assert {(row.ranks, row.parameters, row.asked) for row in rows} == {((8, 8, 3, 1), 715, 768)}
    assert [(row.method, row.within) for row in rows] == [
        ("TensLoRA qkv_depth [layer=1]", False),
        ("TensLoRA qkv_depth [layer=1, clip=1.0]", True),
    ]
    with pytest.raises(UserError, match=r"methods.0: .*budget of parameters, not of ranks"):
        plan(methods=[starved], budgets=[{"isorank": 2}])
    with pytest.raises(UserError, match=r"methods.0: .*free ranks"):
        plan(methods=[starved], budgets=[])


@pytest.mark.parametrize("method", ["lora", {"method": "tenslora", "variant": "att_qkv_depth"}])
def test_a_budget_below_the_smallest_possible_is_refused(method: Any) -> None:
    with pytest.raises(UserError, match=r"budget.*\b20\b.*smallest.*[0-9]+"):
        plan(methods=[method], budgets=[{"parameters": 20}])


def test_head_only_needs_no_budget_and_has_one_row() -> None:
    made = plan(methods=["head_only"], budgets=[{"isorank": 1}, {"isorank": 2}])
    (row,) = made.rows
    assert (row.budget, row.parameters, row.within) == (None, 0, None)


def test_budgets_of_a_row_replace_those_of_the_suite() -> None:
    made = plan(methods=["lora", {"method": "tenslora", "variant": "att", "budgets": [{"isorank": 1}]}])
    assert [row.budget for row in made.rows if row.budget] == ["isoparameters 2", "isorank 1"]


def test_a_task_or_backbone_left_without_a_partner_is_refused() -> None:
    with pytest.raises(UserError, match=naming("'movie-sentiment'", "text", "tiny-random-vit")):
        plan(tasks=[MOVIES])
    with pytest.raises(UserError, match=naming("'movie-sentiment'", "text")):
        plan(tasks=[DIGITS, MOVIES])
    with pytest.raises(UserError, match=naming("'tiny-random-bert'", "text", "digits (vision)")):
        plan(backbones=["tiny-random-vit", "tiny-random-bert"])


def test_one_backbone_at_several_image_sizes_has_a_name_for_each() -> None:
    sized = [{"name": "tiny-random-vit", "image_size": size} for size in (16, 24)]
    made = plan(backbones=["tiny-random-vit", *sized])
    assert [row.backbone for row in made.rows] == [
        "tiny-random-vit",
        "tiny-random-vit at 16 px",
        "tiny-random-vit at 24 px",
    ]
    assert [row.backbone for row in plan(backbones=sized[:1]).rows] == ["tiny-random-vit"]


@pytest.mark.parametrize(
    ("name", "backbones", "message"),
    [
        ("tiny-random-vit", ["tiny-random-vit", {"name": "tiny-random-vit", "image_size": 32}], "leave one"),
        ("local:model", [{"local": "a/model"}, {"local": "b/model", "image_size": 48}], "give each a label"),
    ],
    ids=["twice the same size", "other weights"],
)
def test_different_backbones_of_one_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, backbones: list[Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, folder in enumerate(("a", "b")):
        checkpoint(tmp_path / folder / "model", "vit", encoder("vit", seed=seed))
    with pytest.raises(UserError, match=naming("backbones", f"'{name}'", message)):
        plan(backbones=backbones)


def test_every_registered_backbone_can_be_planned_without_its_weights() -> None:
    assert {"minilm-l6", "vit-s14"} <= set(BACKBONES)
    for name in BACKBONES:
        modality = BACKBONES.get(name).describe(None).input.modality
        made = plan(VISION if modality == "vision" else TEXT, backbones=[name])
        assert len(made.trials) == 1


def test_a_plan_shows_its_rows_with_rates_and_trials() -> None:
    label = "<b>mine</b>"
    methods = ["lora", "converged_head", {"method": "tenslora", "variant": "att", "label": label}]
    made = plan(methods=methods, seeds=[0, 1, 2])
    overview = made.overview()
    lines = {line["method"]: line for line in overview.lines}
    assert {name: (line["lr"], line["trials"]) for name, line in lines.items()} == {
        "LoRA": ("0.005", 3),
        "converged head": ("–", 3),
        label: ("0.005", 3),
    }
    assert [line["params"] for line in overview.lines] == [f"{row.parameters:,}" for row in made.rows]
    assert f"{len(made.trials)} trials" in overview.title
    assert label in str(made) == repr(made)
    assert label not in made._repr_html_()
    assert html.escape(label) in made._repr_html_()


def test_a_plan_of_studies_shows_their_windows() -> None:
    made = plan(seeds=[], training={"batch_size": 16}, tuning={"studies": 3, "points": 4})
    (line,) = made.overview().lines
    (row,) = made.rows
    assert row.studies is not None
    rates = [trial.lr for trial in row.studies.trials.values()]
    low, high = map(float, line["lr"].split(" … "))
    assert low <= min(rates) < max(rates) <= high
    assert line["trials"] == 12
    assert "3 studies of 4 points" in made.overview().title
    assert "1 of 3 studies of 4 points" in made.select(Part(studies=[1])).overview().title
