"""Tests reports of selected rows, and comparisons with references other than LoRA."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.stored_plan import Row
from tensorbench.reports.analysis import analyse
from tensorbench.reports.reading import read
from tensorbench.reports.results import FLOOR, NO_ADAPTERS
from tensorbench.reports.selection import Selection

from ..fixtures import Call
from ..messages import naming
from ..stored import Result
from . import made_up_studies
from .made_up import SMALL, Analysed, Stored, answered, plan_of, result
from .made_up_studies import ONE_TASK


def test_comparisons_hold_at_once_for_the_chosen_methods_alone(rich: str) -> None:
    full_block = analyse(read(rich, ["rich"])).blocks[0]
    chosen = ["LoRA", "TensLoRA att"]
    part = analyse(read(rich, ["rich"], Selection(methods=chosen, budgets=[full_block.budget])))
    (block,) = part.blocks
    (entrant,) = block.compared
    (other,) = (each for each in full_block.compared if each.method == entrant.method)
    assert {each.method for each in block.entrants} == set(chosen)
    alone, among = (each.differences[1] for each in (entrant, other))
    assert alone.effect.difference == among.effect.difference
    assert np.ptp(alone.interval) < np.ptp(among.interval)
    assert f"(methods LoRA, TensLoRA att; budgets {full_block.budget})" in part.notes[0]


def test_another_reference_turns_the_sign(rich: str) -> None:
    selection = Selection(methods=["LoRA"], reference="TensLoRA att", budgets=["isorank"])
    (block,) = analyse(read(rich, ["rich"], selection)).blocks
    (entrant,) = block.compared
    assert (block.against, entrant.method) == ("TensLoRA att", "LoRA")
    with_lora = Selection(methods=["LoRA", "TensLoRA att"], budgets=["isorank"])
    (other,) = analyse(read(rich, ["rich"], with_lora)).blocks[0].compared
    differences = [each.differences[1].effect.difference for each in (entrant, other)]
    assert differences[0] == pytest.approx(-differences[1])


def test_a_family_of_one_method_names_the_reference(rich: str) -> None:
    results = read(rich, ["rich"], Selection(reference="lotr"))
    assert results.reference == "LoTR"
    assert {block.against for block in analyse(results).blocks} == {"LoTR"}


def test_a_reference_of_another_budget_is_found_there(rich: str) -> None:
    selection = Selection(methods=["TensLoRA att"], budgets=["isorank"], reference="head only")
    (block,) = analyse(read(rich, ["rich"], selection)).blocks
    assert block.reference is not None
    assert {(cell.method, cell.budget) for cell in block.reference.cells} == {("head only", "fixed size")}
    assert [entrant.method for entrant in block.compared] == ["TensLoRA att"]


def test_a_title_means_all_of_its_rows_and_the_name_of_one_row_only_that(rich: str) -> None:
    def adapters(name: str) -> set[str]:
        (experiment,) = read(rich, ["rich"], Selection(methods=[name])).experiments
        return {row.method for row in experiment.rows if row.family not in NO_ADAPTERS}

    assert len(adapters("tenslora")) > 1
    assert all(name.startswith("TensLoRA") for name in adapters("tenslora"))
    assert adapters("LoRA") == {"LoRA"}


def test_heads_stay_beside_chosen_methods_on_their_tasks(rich: str) -> None:
    full = read(rich, ["rich"])
    heads = {(cell.method, cell.task) for cell in full.all_cells if cell.family == FLOOR}
    assert heads
    for selection in (Selection(methods=["LoTR"]), Selection(budgets=["isorank 2"])):
        part = read(rich, ["rich"], selection)
        assert heads <= {(cell.method, cell.task) for cell in part.all_cells}
    (experiment,) = read(rich, ["rich"], Selection(methods=["LoTR"], tasks=["digits"])).experiments
    assert {row.task for row in experiment.rows} == {"digits"}
    # Beside a head alone, other heads have nothing to tell.
    (experiment,) = read(rich, ["rich"], Selection(methods=["head only"])).experiments
    assert {row.title for row in experiment.rows} == {"head only"}


@pytest.mark.parametrize(
    ("selection", "reason"),
    [
        (Selection(methods=["TensLoRA at"]), "method of this report 'TensLoRA at'.*TensLoRA att"),
        (Selection(reference="Lora"), "reference 'Lora'.*LoRA"),
        (Selection(reference="tenslora"), "'tenslora' stands for TensLoRA att, TensLoRA qkv, .*name one"),
        (Selection(budgets=["isorank 99"]), "budget of this report 'isorank 99'.*isorank 2"),
        (Selection(methods=["head only"], budgets=["isorank 2"]), "no row is of all these"),
    ],
)
def test_missing_rows_are_refused(rich: str, selection: Selection, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read(rich, ["rich"], selection)


def test_a_selection_of_another_type_is_refused() -> None:
    with pytest.raises(UserError, match=naming("selection", "Selection(methods=['LoRA'])", "'VeRA'")):
        read("sqlite:///none.db", ["rich"], {"reference": "VeRA"})  # type: ignore[arg-type]


def test_chosen_methods_meet_the_head_of_another_tuned_suite(analysed: Analysed) -> None:
    def made(trial: Trial, row: Row) -> Result:
        right = {"converged head": 950, "LoRA": 800, "LoTR": 880}.get(row.title, 840)
        right += random.Random(trial.id).randint(-3, 3)
        return answered(right, 1000, measures={Measure.SELECTED_LOSS: 2 - right / 500})

    tuned = ONE_TASK | {"tuning": {"studies": 3, "points": 3}}
    plans = [
        made_up_studies.plan_of(**tuned, name="adapters", methods=["lora", "lotr"]),
        made_up_studies.plan_of(**tuned, name="heads", methods=["converged_head", "fact_tt"]),
    ]
    for selection in (None, Selection(methods=["LoRA", "LoTR"])):
        (block,) = analysed(made, *plans, selection=selection).blocks
        (of_lotr,) = (entrant for entrant in block.compared if entrant.method == "LoTR")
        assert of_lotr.differences[block.k].verdict.reason == "LoRA is no better than a head"


def test_rows_of_fixed_size_are_named_as_in_tables() -> None:
    def row(method: str, budget: str | None, *ranks: int) -> Row:
        return Row.model_construct(method=method, budget=budget, ranks=ranks)

    assert row("LoRA (targets=qkvo)", None, 3).table_name == "LoRA (targets=qkvo) r=3"
    assert row("TensLoRA att", "isorank 2", 2, 2).table_name == "TensLoRA att"
    assert row("head only", None).table_name == "head only"


def test_a_row_is_paired_with_that_of_the_same_name_in_another_experiment(
    stored: Stored,
) -> None:
    others = (SMALL | {"name": name, "training": {"batch_size": 8}} for name in ("wider", "repeated"))
    uri = stored(result, *(plan_of(**each) for each in (SMALL, *others)))
    names = ["small", "wider", "repeated"]
    both = {"LoRA", "LoRA · wider"}
    # The pair repeated by the third appears once.
    (method_names,) = {tuple(read(uri, names).cells["method"])}
    assert sorted(method_names) == sorted([*both, "TensLoRA att", "TensLoRA att · wider"])
    assert set(read(uri, names, Selection(methods=["LoRA"])).cells["method"]) == both
    assert set(read(uri, names, Selection(methods=["LoRA · wider"])).cells["method"]) == {"LoRA · wider"}
    part = Selection(methods=["LoRA · wider"], reference="LoRA")
    first, second = analyse(read(uri, names, part)).blocks
    assert re.search(naming("batch_size", 64, 8), " ".join(second.notes))
    assert not first.compared + second.compared


def test_the_command_writes_a_part_and_leaves_the_stored_report_alone(
    rich: str, call: Call, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--method", "LoRA,TensLoRA att", "--reference", "TensLoRA att", "--format", "html"]
    ended = call("report", "rich", "--store", rich, "--out", out, *options)
    assert ended.code == 0
    assert "suite run" not in ended.out
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "difference from TensLoRA att" in page
    assert "difference from LoRA" not in page


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
