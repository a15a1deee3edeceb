"""Tests the cautions that docs/findings.py adds to any question, on made-up results."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.records.stored_plan import Tuned

from ..messages import naming
from .made_up import BUDGET, rich_of


def test_failures_and_scores_below_the_head_alone_are_named(script: Any, checkout: Path) -> None:
    results = rich_of(script, checkout)
    below = [cell for cell in results.study.all_cells if cell.budget == BUDGET and cell.task == "digits"]
    text = script("answers.cautions").cautions(results, below)
    assert "TensLoRA depth on digits, seed 3 (diverged)" in text
    assert "Below the mean of the head alone: no seed." in text
    assert "grid" not in text

    (head,) = (
        cell for cell in results.study.all_cells if (cell.method, cell.task) == ("head only", "digits")
    )
    (worst,) = (cell for cell in below if cell.method == "TensLoRA depth")
    raised = replace(head, mean=results.study.finished(worst.number)[1].score)
    results.cells = lambda task, budget: {"head only": raised}
    text = script("answers.cautions").cautions(results, [worst])
    assert "Below the mean of the head alone: 1 seed on digits." in text
    # For an error, larger is worse.
    results.cells = lambda task, budget: {"head only": replace(raised, metric="rmse")}
    text = script("answers.cautions").cautions(results, [replace(worst, metric="rmse")])
    assert "Below the mean of the head alone: 2 seeds on digits." in text


def test_an_adapter_that_scores_like_the_head_alone_is_named(script: Any, checkout: Path) -> None:
    results = rich_of(script, checkout)
    (lora, *_) = (c for c in results.study.all_cells if (c.method, c.task) == ("LoRA", "digits"))
    assert "Within" not in script("answers.cautions").cautions(results, [lora])
    # As if the head alone had scored the same.
    results.cells = lambda task, budget: {"head only": lora}
    text = script("answers.cautions").cautions(results, [lora])
    assert re.search("0.10 points.*: LoRA on digits", text)


def test_the_choices_of_a_tuning_on_an_edge_are_counted(script: Any, checkout: Path) -> None:
    results = rich_of(script, checkout)
    edges: list[tuple[str, ...]] = [("lr", "scale"), ("scale",), ()]
    cells = [
        replace(cell, tuning=Tuned(trials=8, seeds=(1000,), chosen={"lr": 1e-3}, edge=edge, ids=()))
        for cell, edge in zip(results.study.all_cells, edges, strict=False)
    ]
    text = script("answers.cautions").cautions(results, cells)
    assert re.search(naming("edge of the grid", 2, 3, "1 in rate", "2 in scale"), text)
    assert "budget" not in text


def test_a_row_that_misses_its_budget_states_its_share(script: Any, checkout: Path) -> None:
    results = rich_of(script, checkout)
    (lotr, *_) = (cell for cell in results.study.all_cells if (cell.method, cell.budget) == ("LoTR", BUDGET))
    shares = [replace(lotr, ratio=ratio, within=within) for ratio, within in ((0.875, False), (1.04, True))]
    texts = [script("answers.cautions").cautions(results, [cell]) for cell in shares]
    assert ["Not at the budget: LoTR (0.88 of it)." in text for text in texts] == [True, False]
    lora = replace(lotr, method="LoRA qkvo", family="lora", budget="fixed size", within=None)
    shares = [replace(lora, percent_of_lora=percent) for percent in (75.0, 99.0)]
    texts = [script("answers.cautions").cautions(results, [cell]) for cell in shares]
    assert ["Not at the budget: LoRA qkvo (0.75 of it)." in text for text in texts] == [True, False]
