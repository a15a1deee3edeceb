"""Reports of some rows, and comparisons with something else than LoRA."""

from __future__ import annotations

from pathlib import Path

import pytest

from methods import UserError
from reports.analysis import analyse
from reports.part import Part
from reports.reading import read

from .made_up import Call


def test_comparisons_hold_at_once_for_the_chosen_methods_alone(rich: str) -> None:
    whole = analyse(read(rich, ["rich"])).blocks[0]
    chosen = ["LoRA", "TensLoRA att"]
    part = analyse(read(rich, ["rich"], Part(methods=chosen, budgets=[whole.budget])))
    (block,) = part.blocks
    (alone,) = block.comparisons
    among = next(found for found in whole.comparisons if found.method == alone.method)
    assert set(block.cells) == set(chosen)
    assert alone.effect.difference == among.effect.difference
    assert alone.interval[1] - alone.interval[0] < among.interval[1] - among.interval[0]
    assert part.notes[0].startswith(f"A part (methods LoRA, TensLoRA att; budgets {whole.budget}): ")


def test_another_reference_turns_the_sign(rich: str) -> None:
    part = Part(methods=["LoRA"], reference="TensLoRA att", budgets=["isorank"])
    (block,) = analyse(read(rich, ["rich"], part)).blocks
    (found,) = block.comparisons
    assert block.reference is not None
    assert (block.reference.method, found.method) == ("TensLoRA att", "LoRA")
    with_lora = Part(methods=["LoRA", "TensLoRA att"], budgets=["isorank"])
    (other,) = analyse(read(rich, ["rich"], with_lora)).blocks[0].comparisons
    assert found.effect.difference == pytest.approx(-other.effect.difference)


def test_a_reference_of_another_budget_is_taken_from_where_it_stands(rich: str) -> None:
    part = Part(methods=["TensLoRA att"], budgets=["isorank"], reference="head only")
    (block, *_) = [found for found in analyse(read(rich, ["rich"], part)).blocks if found.comparisons]
    assert block.reference is not None
    assert (block.reference.method, block.reference.budget) == ("head only", "own size")
    assert [found.method for found in block.comparisons] == ["TensLoRA att"]


def test_a_title_means_all_of_its_rows_and_the_name_of_one_row_only_that(rich: str) -> None:
    rows = {row.method for row in read(rich, ["rich"], Part(methods=["tenslora"])).experiments[0].rows}
    assert len(rows) > 1
    assert all(name.startswith("TensLoRA") for name in rows)
    (row,) = {row.method for row in read(rich, ["rich"], Part(methods=["LoRA"])).experiments[0].rows}
    assert row == "LoRA"


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (Part(methods=["TensLoRA at"]), "method of this report 'TensLoRA at'.*TensLoRA att"),
        (Part(reference="Lora"), "reference 'Lora'.*LoRA"),
        (Part(budgets=["isorank 99"]), "budget of this report 'isorank 99'.*isorank 2"),
        (Part(methods=["head only"], budgets=["isorank 2"]), "no row is of all these"),
    ],
)
def test_what_is_not_there_is_refused(rich: str, part: Part, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read(rich, ["rich"], part)


def test_the_command_writes_a_part_and_leaves_the_stored_report_alone(
    rich: str, call: Call, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = ["--method", "LoRA,TensLoRA att", "--reference", "TensLoRA att", "--format", "html"]
    ended = call("report", "rich", "--store", rich, "--out", out, *asked)
    assert ended.code == 0
    assert "suite run" not in ended.out
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "From TensLoRA att" in page
    assert "From LoRA" not in page
