"""Tests the contents of figures, and that their elements can be distinguished."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import combinations
from typing import Any

import pytest
from matplotlib.lines import Line2D
from matplotlib.text import Text

from tensorbench.reports.analysis import Analysis
from tensorbench.reports.blocks import Estimate
from tensorbench.reports.drawing import Drawn, Looks, Tips, legend_below, panels, spread, usual
from tensorbench.reports.figures import draw
from tensorbench.reports.figures.compared import ForestRow, differences, forest, reach
from tensorbench.reports.figures.cost import COSTS, _Point, best_means
from tensorbench.reports.figures.training import curves
from tensorbench.reports.reading import read
from tensorbench.reports.results import Cell, Results
from tensorbench.reports.units import PERCENT

from ..stored import Result
from .made_up import SMALL, Stored, plan_of


def cells(**columns: Any) -> list[Cell]:
    """Complete cells, one for each entry of the lists in `columns`. Other values are equal in all cells."""
    count = max(len(column) for column in columns.values() if isinstance(column, list))
    values = {"task": "t", "backbone": "b", "complete": True} | columns
    blank = dict.fromkeys(column.name for column in fields(Cell)) | {"measures": {}}
    return [
        Cell(
            **blank
            | {"number": number}
            | {
                name: column[number] if isinstance(column, list) else column
                for name, column in values.items()
            }
        )
        for number in range(count)
    ]


def best(parameters: list[int], means: list[float], complete: Sequence[bool] = ()) -> list[int]:
    made = cells(parameters=parameters, complete=list(complete) or [True] * len(means), metric="accuracy")
    points = [_Point(c, Estimate(m), COSTS[0].of(c), PERCENT) for c, m in zip(made, means, strict=True)]
    return [point.cell.number for point in best_means(points)]


def test_no_two_families_look_alike() -> None:
    looks = Looks([f"family {number}" for number in range(30)])
    assert len({(looks.colour(family), looks.shape(family)) for family in looks.families}) == 30


def test_the_best_means_are_those_that_nothing_smaller_has() -> None:
    means, complete = [0.5, 0.6, 0.7, 0.65, 0.9], [True, True, True, True, False]
    assert best([10, 20, 20, 30, 40], means, complete) == [0, 2]


def test_the_same_trials_in_two_budgets_are_both_among_the_best() -> None:
    assert sorted(best([10, 5, 10, 20], [0.8, 0.7, 0.8, 0.8])) == [0, 1, 2]


@pytest.fixture(scope="module")
def drawn(analysis: Analysis) -> dict[str, Drawn]:
    return {figure.name: figure for figure in draw(analysis)[0]}


def test_marks_show_the_numbers_behind_them(analysis: Analysis, drawn: dict[str, Drawn]) -> None:
    cost = drawn["score-vs-parameters-1"]
    assert "digits" in cost.title
    tips = cost.tips.texts.values()
    (lost,) = [text for text in tips if text.startswith("TensLoRA depth (isoparameters 2)")]
    assert "trials are missing" in lost
    cell = next(c for c in analysis.results.all_cells if c.title == "LoTR" and c.task == "digits")
    assert any(t.startswith("LoTR (") and f"{100 * (cell.mean or 0):.2f} (" in t for t in tips)
    assert "seed 4: " in next(iter(drawn["training-curves-0"].tips.texts.values()))


def test_each_mark_carries_its_own_text(drawn: dict[str, Drawn]) -> None:
    for figure in drawn.values():
        titles = re.findall(r"<a[^>]*><title>([^<]*)</title>", figure.inline())
        assert Counter(titles) == Counter(map(html.escape, figure.tips.texts.values()))
        assert "<a" not in figure.svg()


def test_cells_missing_seeds_are_hollow(drawn: dict[str, Drawn]) -> None:
    dots = drawn["score-vs-parameters-1"].figure.axes[0].collections
    assert sum(not len(dot.get_facecolor()) for dot in dots) == 1


def test_a_collapsed_method_does_not_set_the_limits() -> None:
    rows = [
        ForestRow(str(value), value, (value - 0.5, value + 0.5), "#0072b2", "o", f"at {value}")
        for value in (1.2, 0.3, -0.8, -40.0)
    ]
    low, high = reach(rows, 1.0, [5.0, -9.0])
    assert -5 < low < -0.8
    assert 1.2 < high < 5
    _, (ax,) = panels(1, height=2)
    tips = Tips()
    forest(ax, rows, (low, high), tips)
    assert [text.get_text() for text in ax.texts] == ["−40"]
    arrows = [dots for dots in ax.collections if dots.get_offsets()[0][0] == low]
    assert [float(dots.get_offsets()[0][1]) for dots in arrows] == [-3.0]
    assert usual([80, 81, 82, 79, 20], 1, 2.0) == (79, 82)
    assert usual([80, 60], 1, 2.0) == (60, 80)
    # One value is far from all others, although these are spread out.
    assert usual([49.4, 64.2, 65.8, 66, 70, 72, 73.7], 1, 5.0) == (64.2, 73.7)
    assert usual([50, 60, 70, 80], 1, 5.0) == (50, 80)
    assert usual([0.5, 0.51, 0.52, 9.0], -1, 0.1) == (0.5, 0.52)


def test_an_interval_is_whole_if_it_is_hardly_wider_than_most() -> None:
    def drawn(value: float, low: float, high: float) -> float:
        ends = [(0.75, -0.82, 2.32), (-0.1, -1.84, 1.64), (value, low, high)]
        return reach([ForestRow("", v, (b, e), "#0072b2", "o", "") for v, b, e in ends], 1.0)[1]

    assert drawn(1.12, -0.62, 2.85) > 2.85
    assert drawn(1.12, -6.78, 9.0) < 9.0


def test_a_caption_names_lines_that_are_drawn_and_levels_outside(analysis: Analysis) -> None:
    block = next(block for block in analysis.blocks if block.levels)
    looks = Looks(cell.family for cell in analysis.results.all_cells)

    def caption(*values: float) -> str:
        levels = [replace(block.levels[0], difference=value) for value in values]
        return differences(replace(block, levels=tuple(levels)), "", "", looks).caption

    inside, both, outside = caption(0.0), caption(0.0, -0.9), caption(-0.9)
    assert "Lines are" in inside
    assert "Outside" not in inside
    assert "Lines are" in both
    assert "Outside the frame: head only (−90.00)." in both
    assert "Lines are" not in outside


def test_the_axes_are_those_of_what_is_compared(analysis: Analysis, drawn: dict[str, Drawn]) -> None:
    for name in ("score-vs-memory-0", "training-curves-0"):
        low, high = drawn[name].figure.axes[0].get_ylim()
        cells = [c for c in analysis.results.all_cells if c.task in drawn[name].title + drawn[name].caption]
        (head,) = [c.mean for c in cells if c.family == "head_only"]
        assert 100 * (head or 0) < low < 100 * min(c.mean or 0 for c in cells if c.mean != head)
        assert high < 101.5
    words = [text.get_text() for text in drawn["score-vs-memory-0"].figure.axes[0].texts]
    assert any(word.startswith("outside: head only") for word in words)


def test_points_outside_a_panel_are_not_labelled(drawn: dict[str, Drawn]) -> None:
    """A label's line to a point outside would squeeze the panel."""
    labelled = 0
    for name, figure in drawn.items():
        if name.startswith("score-vs"):
            for ax in figure.figure.axes:
                low, high = ax.get_ylim()
                points = [text.xy[1] for text in ax.texts if text.get_position()[0] == 1.03]
                assert all(low <= y <= high for y in points)
                labelled += len(points)
    assert labelled > 0


def test_names_beside_a_panel_do_not_collide(drawn: dict[str, Drawn]) -> None:
    for name in ("training-curves-0", "score-vs-parameters-2", "score-vs-memory-0"):
        drawn[name].svg()
        (ax,) = drawn[name].figure.axes
        # Extents of the texts alone: a note's own extent includes its line to the point.
        names = [text for text in ax.texts if text.get_position()[0] == 1.03]
        boxes = [Text.get_window_extent(text) for text in names]
        assert len(boxes) > 1
        assert all(not first.overlaps(second) for first, second in combinations(boxes, 2))
        assert all(not box.overlaps(ax.bbox) for box in boxes)


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("name", ["LoRA", "TensLoRA qkv_depth [projection=1, layer=1]"])
def test_a_legend_lies_within_its_figure(name: str, columns: int) -> None:
    figure, _ = panels(columns, columns=columns, height=4)
    legend_below(figure, [Line2D([], [], label=f"{name} {number}") for number in range(7)], 4)
    figure.draw_without_rendering()
    (box,) = (legend.get_window_extent() for legend in figure.legends)
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_labels_do_not_overlap_and_stay_below_the_top() -> None:
    assert spread([1.0, 1.1, 5.0], 1.0) == pytest.approx([0.55, 1.55, 5.0])
    assert spread([9.9, 9.8, 9.7, 1.0], 1.0, top=10.0) == pytest.approx([10.0, 9.0, 8.0, 1.0])


def test_a_method_of_fixed_size_beside_budgets_has_a_curve(stored: Stored) -> None:
    methods = ["head_only", "lora", {"method": "peft", "type": "IA3"}]
    plan = plan_of(**SMALL | {"methods": methods, "budgets": [{"isorank": 2}, {"isorank": 3}]})
    results = read(stored(lambda *_: Result(score=0.5, validation=[0.4, 0.5]), plan), ["small"])
    drawn = [curve for curve in curves(results)[0] if curve.cell.family != "head_only"]
    assert {curve.cell.number for curve in drawn} == {
        cell.number for cell in results.all_cells if cell.family != "head_only"
    }
    assert sorted(curve.panel.budget for curve in drawn) == ["fixed size", "isorank 2", "isorank 3"]


def test_a_curve_says_that_a_seed_is_not_in_its_mean(results: Results) -> None:
    drawn = [(curve.cell, curve.label) for curve in curves(results)[0]]
    short = [(cell, label) for cell, label in drawn if not cell.complete]
    assert short
    assert all(label == f"{cell.method} ({cell.finished} of {cell.seeds} seeds)" for cell, label in short)
    assert all(label == cell.method for cell, label in drawn if cell.complete)
