"""What figures show, and how they keep it apart."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from reports import curves
from reports.analysis import Analysis
from reports.drawing import Looks, spread
from reports.figures.summaries import apart, profile
from reports.pareto import pareto
from reports.study import Cell, Study


def cells(**columns: Any) -> list[Cell]:
    """A complete cell for each entry of the columns that are named; all others are alike."""
    count = max(len(column) for column in columns.values() if isinstance(column, list))
    told = {"task": "t", "backbone": "b", "complete": True} | columns
    blank = dict.fromkeys(column.name for column in fields(Cell))
    return [
        Cell(
            **blank
            | {"number": number}
            | {name: column[number] if isinstance(column, list) else column for name, column in told.items()}
        )
        for number in range(count)
    ]


def on_the_front(cells: list[Cell]) -> list[int]:
    return [cell.number for cell in pareto(cells, lambda cell: cell.parameters)]


def test_no_two_families_look_alike() -> None:
    looks = Looks([f"family {number}" for number in range(30)])
    assert len({(looks.colour(family), looks.shape(family)) for family in looks.families}) == 30


def test_the_pareto_front_is_what_nothing_smaller_beats() -> None:
    made = cells(
        backbone=["b"] * 5 + ["c"],
        parameters=[10, 20, 20, 30, 40, 50],
        mean=[0.5, 0.6, 0.7, 0.65, 0.9, 0.1],
        complete=[True, True, True, True, False, True],
    )
    assert on_the_front(made) == [0, 2, 5]


def test_the_same_trials_in_two_budgets_are_both_on_the_front() -> None:
    made = cells(parameters=[10, 5, 10, 20], mean=[0.8, 0.7, 0.8, 0.8])
    assert sorted(on_the_front(made)) == [0, 1, 2]


def test_labels_stand_apart_and_below_the_top() -> None:
    assert spread([1.0, 1.1, 5.0], 1.0) == pytest.approx([0.55, 1.55, 5.0])
    assert spread([9.9, 9.8, 9.7, 1.0], 1.0, top=10.0) == pytest.approx([10.0, 9.0, 8.0, 1.0])


def test_a_curve_says_that_a_seed_is_not_in_its_mean(study: Study) -> None:
    drawn = [(study.all_cells[curve.cell], curve.label) for curve in curves.read(study)[0]]
    short = [(cell, label) for cell, label in drawn if not cell.complete]
    assert short
    assert all(label == f"{cell.method} ({cell.finished} of {cell.seeds} seeds)" for cell, label in short)
    assert all(label == cell.method for cell, label in drawn if cell.complete)


def test_bars_join_the_methods_that_are_not_told_apart(analysis: Analysis) -> None:
    block = analysis.blocks[0]
    drawn = apart(analysis.study, block, 0, Looks(["lora", "tenslora", "lotr"]))
    assert drawn is not None
    assert block.ranking is not None
    letters = block.ranking.letters or ()
    ranks = block.ranking.ranks.mean
    (ax,) = drawn.figure.axes
    # A bar is level; what leads to a name is not.
    bars = [line.get_xdata() for line in ax.lines if len(set(line.get_ydata())) == 1]
    shared = {a for a in "".join(letters) if sum(a in some for some in letters) > 1}
    ends = [[rank for rank, some in zip(ranks, letters, strict=True) if a in some] for a in sorted(shared)]
    assert [(min(bar), max(bar)) for bar in bars] == [(min(some), max(some)) for some in ends]


def test_a_profile_is_the_share_of_runs_that_reach_a_score(analysis: Analysis) -> None:
    block = analysis.blocks[0]
    drawn = profile(analysis.study, block, 0, Looks(["lora", "tenslora", "lotr"]))
    assert drawn is not None
    line = drawn.figure.axes[0].lines[0]
    runs = block.aggregates[block.methods[0]].runs
    x, y = line.get_xdata(), line.get_ydata()
    for score in (runs.min() - 1e-6, float(sorted(runs)[3]) + 1e-6, runs.max()):
        reached = y[max(0, int((x < score).sum()) - 1)]
        assert reached == pytest.approx(100 * (runs >= score).mean())
