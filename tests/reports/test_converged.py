"""Tests the converged head in reports: its row, its line in figures, and adapters that lose to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Row
from tensorbench.reports import figures
from tensorbench.reports.analysis import analyse
from tensorbench.reports.drawing import Drawn
from tensorbench.reports.guards import unbeaten
from tensorbench.reports.reading import read
from tensorbench.reports.report import write_report
from tensorbench.reports.results import CONVERGED, Results
from tensorbench.reports.selection import Selection

from ..stored import Result
from .made_up import EXAMPLES, Stored, answered, plan_of, printed, summary_of

METHODS = ["head_only", "converged_head", "lora", {"method": "tenslora", "each": {"variant": ["att", "qkv"]}}]
SMALL: dict[str, Any] = {
    "name": "small",
    "tasks": ["digits", "textile"],
    "backbones": ["tiny-random-vit"],
    "methods": METHODS,
    "budgets": [{"isorank": 2}],
    "seeds": [0, 1, 2],
}
TITLES = ("head only", "converged head", "LoRA", "TensLoRA att", "TensLoRA qkv")
#: The number of correct answers by task and method.
RIGHT = {
    "digits": dict(zip(TITLES, (150, 180, 170, 172, 160), strict=True)),
    "textile": dict(zip(TITLES, (120, 130, 140, 144, 141), strict=True)),
}


def result(trial: Trial, row: Row) -> Result:
    """The made-up result of a trial. The converged head has the same result for every seed."""
    fitted = row.family == CONVERGED
    right = RIGHT[row.task][row.title] + (0 if fitted else trial.seed)
    score = right / EXAMPLES
    validation = [score] if fitted else [score - 0.1 / epoch for epoch in range(1, 7)]
    return answered(right, EXAMPLES, validation=validation)


@pytest.fixture(scope="module")
def uri(stored: Stored) -> str:
    return stored(result, plan_of(**SMALL))


@pytest.fixture(scope="module")
def results(uri: str) -> Results:
    return read(uri, ["small"])


def test_the_converged_head_comes_first_where_no_adapter_beats_it(
    uri: str, results: Results, tmp_path: Path
) -> None:
    (sentence,) = unbeaten(results.all_cells)
    for part in ("digits · tiny-random-vit", "90.00", "86.50", "TensLoRA att"):
        assert part in sentence
    shown = printed(*summary_of(uri).tables("toy"))
    assert shown.index(sentence) < shown.index("± is the standard deviation")
    write_report("small", out=tmp_path / "out", store=uri, formats=["html", "md"], log=False)
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.index(sentence) < page.index("<table")
    assert sentence.split(":")[0] in (tmp_path / "out" / "tables" / "tables.md").read_text().split("## ")[0]


def test_the_converged_head_is_no_reference(uri: str) -> None:
    with pytest.raises(UserError, match=r"'converged head': its score is a level.*accepted are .*LoRA"):
        read(uri, ["small"], Selection(reference="converged head"))


def test_nothing_is_said_while_runs_are_missing(stored: Stored) -> None:
    def some_results(trial: Trial, row: Row) -> Result | None:
        return None if (row.title, row.task, trial.seed) == ("LoRA", "digits", 2) else result(trial, row)

    assert not unbeaten(read(stored(some_results, plan_of(**SMALL)), ["small"]).all_cells)


def test_seeds_that_do_not_differ_break_no_interval(results: Results) -> None:
    analysis = analyse(results)
    (head,) = {cell.method for cell in results.all_cells if cell.family == CONVERGED}
    for cell in results.all_cells:
        if cell.family == CONVERGED:
            assert cell.sd == 0
    compared = [level for block in analysis.blocks for level in block.levels if level.method == head]
    assert compared
    for level in compared:
        assert level.comparison is not None
        assert level.comparison.interval is not None
        assert level.difference is not None
        assert level.comparison.interval[0] < level.difference < level.comparison.interval[1]


def lines(drawn: Drawn, axis: int) -> set[float]:
    """The positions of a figure's vertical lines if `axis` is 0, or of its horizontal lines if it is 1."""
    data = [line.get_xydata() for panel in drawn.figure.axes for line in panel.lines]
    return {round(float(d[0][axis]), 6) for d in map(np.asarray, data) if len({row[axis] for row in d}) == 1}


def test_every_figure_has_its_line(results: Results) -> None:
    analysis = analyse(results)
    drawn = {figure.name: figure for figure in figures.draw(analysis)[0]}
    costs = [name for name in drawn if name.startswith("score-vs-")]
    assert len(costs) == 4
    for name in costs:
        assert lines(drawn[name], 1) & {90.0, 65.0}, name
        assert "converged head" in {text.get_text() for text in drawn[name].figure.axes[0].texts}
    trained = [name for name in drawn if name.startswith("training-curves-")]
    assert len(trained) == 2
    for name in trained:
        assert lines(drawn[name], 1) & {90.0, 65.0}, name
    (block,) = (number for number, block in enumerate(analysis.blocks) if block.budget == "isorank 2")
    forest = drawn[f"differences-{block}"]
    # The converged head's difference from LoRA: 180 of 200 against 171 on digits, 130 against 141 on textile.
    assert -0.5 in lines(forest, 0)
