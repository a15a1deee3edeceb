"""Tests a plan's warnings about its tuning: confounded axes, untried values and coarse grids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tensorbench.plan.choosing import HEAD_LR_GRID, LR_GRID, SCALE_GRID
from tensorbench.plan.coverage import coarse, tied, tuning_notes, untried
from tensorbench.plan.settings import Setting

from ..toy_suites import TEXT, plan, write

Call = Callable[..., Any]
GRIDS = {"lr": LR_GRID, "scale": SCALE_GRID, "head_lr": HEAD_LR_GRID}


def test_axes_that_go_together_are_tied() -> None:
    settings = [Setting(lr=lr, scale=scale) for lr, scale in ((1e-3, 0.1), (1e-2, 1), (1e-1, 10))]
    (note,) = tied(settings)
    assert note.startswith("lr and scale")
    assert not list(tied([*settings, Setting(lr=1e-3, scale=10), Setting(lr=1e-1, scale=0.1)]))
    # A single value ties no axis.
    assert not list(tied([Setting(lr=lr, scale=1.0) for lr in (1e-3, 1e-2)]))
    negative = [setting.model_copy(update={"scale": -(setting.scale or 0)}) for setting in settings]
    assert list(tied(negative)) == [note]


def test_values_that_no_point_has_are_named() -> None:
    (note,) = untried({"lr": (1e-3, 1e-2), "scale": (0.1, 1)}, [Setting(lr=1e-3, scale=s) for s in (0.1, 1)])
    assert "lr 0.01" in note


@pytest.mark.parametrize(
    ("grids", "axes"),
    [
        (GRIDS, []),
        ({"core_lr": (1, 4, 16)}, []),
        ({"lr": (1e-4, 1e-3)}, ["lr"]),
        ({"lr": (1e-3, 5e-3), "head_lr": (1e-3, 3e-3, 3e-2)}, ["lr", "head_lr"]),
        # Scales fill the gaps between products of rates, but methods without a scale keep these gaps.
        ({"lr": (1e-3, 1e-2), "scale": (0.3, 1, 3)}, ["lr"]),
        ({"lr": (1e-3, 3e-3), "scale": (0.01, 1)}, ["lr × scale"]),
        ({"scale": (0.1, 1)}, ["scale"]),
    ],
)
def test_a_coarse_grid_is_warned_of(grids: dict[str, tuple[float, ...]], axes: list[str]) -> None:
    assert [note.split("values of ")[1].split(" are up")[0] for note in coarse(grids)] == axes


def test_few_points_are_warned_of_with_the_methods_they_concern() -> None:
    made = plan(TEXT, methods=["lora", "head_only"], tuning={"trials": 3})
    notes = tuning_notes(made)
    assert any(note.startswith("tuning of LoRA") and " lr 0.0001, " in note for note in notes)
    assert any(note.startswith("tuning: 3 points") for note in notes)
    assert tuning_notes(plan(tuning="none")) == []


def test_the_default_tuning_ties_nothing_and_leaves_nothing_untried() -> None:
    # Excludes methods with a published point, which would take one of the eight points.
    methods = ["lora", "head_only", "lotr", {"method": "peft", "type": "IA3"}]
    for core in (None, [1, 4, 16], [1, 4, 8, 16]):
        assert tuning_notes(plan(TEXT, methods=methods, tuning={"core_lr": core})) == []


def test_plan_shows_the_points(call: Call, tmp_path: Path) -> None:
    file = write(tmp_path, TEXT, tuning={"trials": 3})
    shown = call("plan", file)
    assert "Points of tuning" in shown.out
    assert "untried" in " ".join(shown.out.split())
    document = json.loads(call("plan", file, "--json").out)
    assert len(document["tuning_points"]) == 3
    assert document["tuning_warnings"]
