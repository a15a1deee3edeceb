"""Tests reports of selected rows, and comparisons with references other than LoRA."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tensorbench.methods import UserError
from tensorbench.records.stored_plan import PlannedRow
from tensorbench.reports.analysis import Block, analyse
from tensorbench.reports.reading import read
from tensorbench.reports.selection import Selection

from ..messages import naming
from ..stored import write
from . import made_up
from .browsing import page_of
from .made_up import Call


def test_comparisons_hold_at_once_for_the_chosen_methods_alone(rich: str) -> None:
    full_block = analyse(read(rich, ["rich"])).blocks[0]
    chosen = ["LoRA", "TensLoRA att"]
    part = analyse(read(rich, ["rich"], Selection(methods=chosen, budgets=[full_block.budget])))
    (block,) = part.blocks
    (alone,) = block.comparisons
    among = next(comparison for comparison in full_block.comparisons if comparison.method == alone.method)
    assert set(block.cells) == set(chosen)
    assert alone.effect.difference == among.effect.difference
    assert alone.interval[1] - alone.interval[0] < among.interval[1] - among.interval[0]
    assert f"(methods LoRA, TensLoRA att; budgets {full_block.budget})" in part.notes[0]


def test_another_reference_turns_the_sign(rich: str) -> None:
    selection = Selection(methods=["LoRA"], reference="TensLoRA att", budgets=["isorank"])
    (block,) = analyse(read(rich, ["rich"], selection)).blocks
    (comparison,) = block.comparisons
    assert block.reference is not None
    assert (block.reference.method, comparison.method) == ("TensLoRA att", "LoRA")
    with_lora = Selection(methods=["LoRA", "TensLoRA att"], budgets=["isorank"])
    (other,) = analyse(read(rich, ["rich"], with_lora)).blocks[0].comparisons
    assert comparison.effect.difference == pytest.approx(-other.effect.difference)


def test_a_reference_of_another_budget_is_found_there(rich: str) -> None:
    selection = Selection(methods=["TensLoRA att"], budgets=["isorank"], reference="head only")
    (block, *_) = [
        candidate for candidate in analyse(read(rich, ["rich"], selection)).blocks if candidate.comparisons
    ]
    assert block.reference is not None
    assert (block.reference.method, block.reference.budget) == ("head only", "fixed size")
    assert [candidate.method for candidate in block.comparisons] == ["TensLoRA att"]


def test_a_title_means_all_of_its_rows_and_the_name_of_one_row_only_that(rich: str) -> None:
    rows = {row.method for row in read(rich, ["rich"], Selection(methods=["tenslora"])).experiments[0].rows}
    assert len(rows) > 1
    assert all(name.startswith("TensLoRA") for name in rows)
    (row,) = {row.method for row in read(rich, ["rich"], Selection(methods=["LoRA"])).experiments[0].rows}
    assert row == "LoRA"


PAIRS = [
    ("LoRA", "TensLoRA att"),
    ("LoTR", "TensLoRA att"),
    ("LoTR", "TensLoRA qkv"),
    ("TensLoRA att", "head only"),
]


def test_pairs_with_several_references_hold_at_once(rich: str) -> None:
    def blocks(selection: Selection) -> tuple[Block, ...]:
        return analyse(read(rich, ["rich"], selection)).blocks

    pair_blocks = blocks(Selection(pairs=PAIRS, budgets=["isoparameters"]))
    compared_pairs = [
        (comparison.method, block.named_reference)
        for block in pair_blocks
        for comparison in block.comparisons
    ]
    assert sorted(compared_pairs) == sorted(PAIRS)
    assert [block.level for block in pair_blocks] == [pytest.approx(1 - 0.05 / 3)] * 3
    for block in pair_blocks:
        methods = [method for method, reference in PAIRS if reference == block.named_reference]
        (by_itself,) = blocks(
            Selection(methods=methods, reference=block.named_reference, budgets=["isoparameters"])
        )[:1]
        alone = {comparison.method: comparison for comparison in by_itself.comparisons}
        for comparison in block.comparisons:
            before = alone[comparison.method]
            each = (1 - 0.05 / 3) ** (1 / len(methods))
            assert comparison.effect.difference == before.effect.difference
            assert comparison.interval == pytest.approx(comparison.effect.interval(each))
            assert comparison.interval[1] > before.interval[1]


def test_pairs_with_one_reference_are_what_a_reference_of_its_own_gives(rich: str) -> None:
    chosen = {"tasks": ["digits"], "budgets": ["isorank"]}
    paired = Selection(pairs=[("LoRA", "TensLoRA att"), ("LoTR", "TensLoRA att")], **chosen)
    named = Selection(methods=["LoRA", "LoTR"], reference="TensLoRA att", **chosen)
    of_pairs, of_reference = (
        analyse(read(rich, ["rich"], selection)).blocks for selection in (paired, named)
    )
    intervals = [
        [
            (block.heading, comparison.method, comparison.interval, comparison.intervals)
            for comparison in block.comparisons
        ]
        for block in (*of_pairs, *of_reference)
    ]
    assert intervals[0] == intervals[1] != []


@pytest.mark.parametrize(
    ("selection", "reason"),
    [
        (Selection(methods=["TensLoRA at"]), "method of this report 'TensLoRA at'.*TensLoRA att"),
        (Selection(reference="Lora"), "reference 'Lora'.*LoRA"),
        (Selection(budgets=["isorank 99"]), "budget of this report 'isorank 99'.*isorank 2"),
        (Selection(methods=["head only"], budgets=["isorank 2"]), "no row is of all these"),
        (Selection(pairs=[("tenslora", "LoRA")]), "method 'tenslora'.*TensLoRA att"),
        (Selection(pairs=[("LoRA", "Lora")]), "reference 'Lora'.*LoRA"),
        (Selection(pairs=[("head only", "LoRA")], budgets=["isorank 2"]), "'head only' has no row among"),
    ],
)
def test_missing_rows_are_refused(rich: str, selection: Selection, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read(rich, ["rich"], selection)


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ({"pairs": [("LoRA", "LoRA")]}, "pair: .*LoRA.*LoRA"),
        ({"pairs": [("LoRA", "")]}, "pair: .*LoRA"),
        ({"pairs": PAIRS, "methods": ["LoRA"]}, "no methods or reference beside"),
        ({"pairs": PAIRS, "reference": "LoRA"}, "no methods or reference beside"),
    ],
)
def test_pairs_that_say_nothing_or_too_much_are_refused(pairs: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Selection(**pairs)


def test_rows_of_fixed_size_are_named_as_in_tables() -> None:
    def row(method: str, budget: str | None, *ranks: int) -> PlannedRow:
        return PlannedRow.model_construct(method=method, budget=budget, ranks=ranks)

    assert row("LoRA (targets=qkvo)", None, 3).table_name == "LoRA (targets=qkvo) r=3"
    assert row("TensLoRA att", "isorank 2", 2, 2).table_name == "TensLoRA att"
    assert row("head only", None).table_name == "head only"


def test_a_row_is_paired_with_that_of_the_same_name_in_another_experiment(
    tmp_path: Path, new_store: made_up.NewStore
) -> None:
    uri = made_up.store(tmp_path, new_store)
    for name in ("wider", "repeated"):
        other = made_up.SMALL | {"name": name, "training": {"batch_size": 8}}
        write(uri, made_up.plan_of(**other), made_up.result)
    names = ["small", "wider", "repeated"]
    both = {"LoRA", "LoRA · wider"}
    # The pair repeated by the third appears once.
    (method_names,) = {tuple(read(uri, names).cells["method"])}
    assert sorted(method_names) == sorted([*both, "TensLoRA att", "TensLoRA att · wider"])
    assert set(read(uri, names, Selection(methods=["LoRA"])).cells["method"]) == both
    assert set(read(uri, names, Selection(methods=["LoRA · wider"])).cells["method"]) == {"LoRA · wider"}
    pair = Selection(pairs=[("TensLoRA att", "TensLoRA att · wider")])
    assert set(read(uri, names, pair).cells["method"]) == {"TensLoRA att", "TensLoRA att · wider"}
    (block,) = analyse(read(uri, names, Selection(pairs=[("LoRA · wider", "LoRA")]))).blocks
    assert re.search(naming("batch_size", 64, 8), str(block.no_reference))


def test_the_page_of_pairs_says_the_level_and_what_each_difference_is_from(rich: str, tmp_path: Path) -> None:
    selection = Selection(pairs=PAIRS[:3], budgets=["isorank"])
    page = page_of(analyse(read(rich, ["rich"], selection)), tmp_path).read_text(encoding="utf-8")
    assert re.search(naming("97.5%", "2 references"), page)
    assert len(re.findall("97.5%, [^%]* 2 references [^%]*95%", page)) == 2
    results = re.search('id="results".*?id="reference"', page, re.S)
    assert results is not None
    # LoTR has two differences in one row and a verdict for each.
    rows = [row for row in results[0].split("<tr ")[1:] if 'data-v="LoTR"' in row]
    assert len(rows) == len(made_up.BASE)
    for row in rows:
        assert [row.count(f"from {name}</small>") for name in ("TensLoRA att", "TensLoRA qkv")] == [2, 2]


def test_the_command_takes_pairs_and_files_say_the_level(rich: str, call: Call, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--pair", "LoRA, LoTR : TensLoRA att", "--pair", "LoTR : TensLoRA qkv", "--budget", "isorank"]
    ended = call("report", "rich", "--store", rich, "--out", out, "--format", "md,json", *options)
    assert ended.code == 0
    assert (out / "tables/tables.md").read_text(encoding="utf-8").count("simultaneously with 97.5%, ") == 2
    stored = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert [block["level"] for block in stored["blocks"]] == [0.975, 0.975]
    levels = {(line["method"], line["block"], line["level"]) for line in stored["tables"]["comparisons"]}
    assert levels == {(method, f"isorank 2 · against {reference}", 0.975) for method, reference in PAIRS[:3]}
    wrong = call("report", "rich", "--store", rich, "--out", tmp_path / "no", "--pair", "LoRA TensLoRA att")
    assert wrong.code != 0
    assert "METHOD,… : REFERENCE" in wrong.err


def test_the_command_writes_a_part_and_leaves_the_stored_report_alone(
    rich: str, call: Call, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--method", "LoRA,TensLoRA att", "--reference", "TensLoRA att", "--format", "html"]
    ended = call("report", "rich", "--store", rich, "--out", out, *options)
    assert ended.code == 0
    assert "suite run" not in ended.out
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "Difference from TensLoRA att" in page
    assert "Difference from LoRA" not in page


def test_a_cell_of_a_part_is_shown_by_its_number_there(rich: str, call: Call, tmp_path: Path) -> None:
    part = ["--method", "LoRA,LoTR", "--budget", "isoparameters"]
    ended = call("report", "rich", "--store", rich, "--out", tmp_path / "out", "--format", "csv", *part)
    assert ended.code == 0, ended.err
    cells = pd.read_csv(tmp_path / "out" / "tables" / "cells.csv")
    (number,) = cells["cell"][(cells["method"] == "LoTR") & (cells["task"] == "digits")]
    command = ["show", "rich", "--store", rich, "--cell", str(number), *part]
    assert call(*command).out.startswith("LoTR · isoparameters 2 · digits")
    wrong = call("show", "0123", "--store", rich, *part)
    assert wrong.code == 2
    assert "add --cell N" in wrong.err
