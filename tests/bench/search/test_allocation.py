"""Tests the chooser of allocations, which runs nothing: the rows that it writes, and their report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tensorbench.methods import UserError
from tensorbench.plan.cells import PlanCell
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import Suite, load_suite
from tensorbench.run.search.chooser import Chooser
from tensorbench.store.store import Store

from ...fixtures import Call, NewStore
from ..toy_suites import DIGITS, MOVIES, UNSEEDED, plan, suite, write
from .scripted import only_chooser

QKV = {"method": "tenslora", "variant": "qkv_depth"}
#: A budget that every allocation of the toy keeps.
WIDE = [{"isoparameters": 8, "tolerance": 0.2}]
#: Studies, in which rows have centres in place of learning rates.
TUNED: dict[str, Any] = {
    **UNSEEDED,
    "training": {"batch_size": 16, "epochs": 1},
    "tuning": {"studies": 2, "points": 2},
}


def allocated(made: Suite, folder: Path) -> tuple[list[PlanCell], list[str]]:
    """The cells of the suite that an allocation writes, and the lines on it."""
    chooser: Chooser = only_chooser(made)
    choices = chooser.run()
    assert choices is not None
    chooser.write(choices, folder / "chosen.yaml")
    text = (folder / "chosen.yaml").read_text()
    assert all(f"# {line}\n" in text for line in choices.lines)
    chosen = load_suite(folder / "chosen.yaml")
    assert (chosen.name, chosen.allocation) == ("chosen", None)
    return list(make_plan(chosen).cells), choices.lines


def test_each_mode_is_starved_or_favoured_in_a_row_with_all_else_of_its_method(tmp_path: Path) -> None:
    row = {**QKV, "scale": 2.0, "centre": 2e-3, "training": {"weight_decay": 0.1}}
    made = suite(TUNED, methods=["lora", row], budgets=[{"isoparameters": 8}], allocation={})
    (lora, heuristic, *rows), lines = allocated(made, tmp_path)
    assert (lora.method.size, heuristic.method.size) == ((8,), (18, 18, 3, 2))
    # With two layers, half of them is one.
    assert {cell.own.method.partition(" [")[2]: cell.method.size for cell in rows} == {
        "input=1.5x, weight_decay=0.1]": (27, 11, 3, 2),
        "output=1.5x, weight_decay=0.1]": (11, 27, 3, 2),
        "projection=1, weight_decay=0.1]": (26, 26, 1, 2),
        "projection=0.5, weight_decay=0.1]": (21, 21, 2, 2),
        "layer=1, weight_decay=0.1]": (23, 23, 3, 1),
    }
    starved = rows[-1].own.method
    assert [line for line in lines if line.startswith("Left out")] == [
        f"Left out: {starved.replace('layer=1', 'layer=0.5')} · isoparameters 8 · tiny-random-vit: its ranks "
        f"are those of {starved}"
    ]
    for cell in rows:
        assert (cell.method.scale, cell.recipe.weight_decay) == (2.0, 0.1)  # type: ignore[attr-defined]
        studies = cell.planned()[0].studies
        assert (studies and studies.centre, cell.budget) == (2e-3, heuristic.budget)
        assert cell.row([]).within


def test_ranks_in_a_list_are_the_same_trials(tmp_path: Path) -> None:
    (heuristic, *rows), _ = allocated(
        suite(methods=[QKV], budgets=WIDE, allocation={"modes": ["layer"]}), tmp_path
    )
    (starved,) = rows
    ranks = [list(cell.method.size or ()) for cell in (heuristic, starved)]
    listed = plan(methods=[{**QKV, "ranks": each} for each in ranks])
    assert [cell.planned()[1] for cell in (heuristic, starved)] == [
        cell.planned()[1] for cell in listed.cells
    ]


@pytest.mark.parametrize(
    ("method", "modes"),
    [
        # Head, projection and layer are whole, input and head size are not.
        ({"variant": "att_qkv_depth"}, {"input", "head_size", "head", "projection", "layer"}),
        # Of three bonds, each is favoured and starved.
        (
            {"variant": "qkv_depth", "factorization": "tt"},
            {"input-layer", "layer-projection", "projection-output"},
        ),
        # Of two modes that are not whole, a single one that varies is starved too.
        ({"variant": "qkv_depth", "modes": ["input"]}, {"input"}),
        # A mode whose rank the row gives keeps it.
        ({"variant": "qkv_depth", "ranks": {"projection": 1}}, {"input", "output", "layer"}),
    ],
    ids=["heads", "train", "one mode", "in part"],
)
def test_other_constructions(method: dict[str, Any], modes: set[str], tmp_path: Path) -> None:
    section = {"modes": method.pop("modes")} if "modes" in method else {}
    budgets = [{"isoparameters": 4, "tolerance": 0.2}]
    made = suite(methods=[{"method": "tenslora", **method}], budgets=budgets, allocation=section)
    (heuristic, *rows), _ = allocated(made, tmp_path)
    names = heuristic.method.rank_names
    whole = dict(zip(names, heuristic.method.size or (), strict=True))
    assert len({cell.own.method for cell in rows}) == len({cell.method.size for cell in rows}) == len(rows)
    given = heuristic.method_row.ranks_in_part
    varied = {}
    for cell in rows:
        (mode, rank), *more = [pair for pair in cell.method_row.ranks_in_part.items() if pair[0] not in given]
        assert not more
        varied.setdefault(mode, set()).add(rank)
        size = dict(zip(names, cell.method.size or (), strict=True))
        assert size[mode] != whole[mode]
        assert all(size[name] == rank for name, rank in given.items())
    assert varied.keys() == modes
    if method.get("factorization") == "tt" or section:
        assert set(map(frozenset, varied.values())) == {frozenset({"1.5x", "0.5x"})}


def test_rows_hold_on_every_backbone_and_are_kept_from_budgets_that_they_miss(tmp_path: Path) -> None:
    made = suite(
        tasks=[DIGITS, MOVIES],
        backbones=["tiny-random-vit", {"name": "tiny-random-bert", "label": "bert"}],
        methods=[{**QKV, "label": "mine"}],
        budgets=[{"isoparameters": 8}, {"parameters": 500}, {"isorank": 2}],
        allocation={"modes": ["input", "layer"]},
    )
    cells, lines = allocated(made, tmp_path)
    assert {(cell.info.name, cell.task.task) for cell in cells} == {
        ("tiny-random-vit", "digits"),
        ("tiny-random-bert", "movie-sentiment"),
    }
    by_name = {}
    for cell in cells:
        assert cell.budget is not None
        by_name.setdefault(cell.shown.method, set()).add(cell.budget.label)
    assert by_name["mine"] == {"isoparameters 8", "500 parameters", "isorank 2"}
    assert by_name["mine [layer=1]"] <= {"isoparameters 8", "500 parameters"}
    for name, labels in by_name.items():
        left_out = {line.split(" · ")[1] for line in lines if line.startswith(f"Left out: {name} · ")}
        if name != "mine":
            assert labels | left_out == {"isoparameters 8", "500 parameters"}
            assert not labels & left_out


def test_variants_of_one_row_have_allocations_of_their_own_modes(tmp_path: Path) -> None:
    row = {"method": "tenslora", "each": {"variant": ["att", "depth"]}}
    cells, _ = allocated(
        suite(methods=[row], budgets=WIDE, allocation={"modes": ["layer", "head"]}), tmp_path
    )
    assert {cell.own.method for cell in cells} == {
        "TensLoRA att",
        "TensLoRA att [head=1]",
        "TensLoRA att [head=0.5]",
        "TensLoRA depth",
        "TensLoRA depth [layer=1]",
    }


def test_an_allocation_starts_nothing_and_its_suite_is_tuned_and_compared(
    tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    file = write(tmp_path, TUNED, methods=[QKV], budgets=WIDE, allocation={"modes": ["layer"]})
    uri, out = new_store(tmp_path), tmp_path / "rows.yaml"
    searched = call("search", file, "--store", uri, "--out", out)
    assert searched.code == 0, searched.err
    assert "[layer=1] · isoparameters 8 · tiny-random-vit: input" in " ".join(searched.out.split())
    assert not Store.there(uri, "toy")
    run = call("run", out, "--store", uri)
    assert run.code == 0, run.err
    assert len(Store.existing(uri, "rows").records()) == 2 * 4
    reported = call("report", out, "--store", uri, "--out", tmp_path / "report")
    assert reported.code == 0, reported.err
    assert "TensLoRA qkv_depth [layer=1]" in (tmp_path / "report" / "index.html").read_text()


def test_a_floor_that_the_suite_does_not_name_is_not_in_the_refusal() -> None:
    with pytest.raises(UserError, match=r"nothing to share in LoRA$"):
        only_chooser(suite(methods=["lora"], floor="auto", allocation={}))
