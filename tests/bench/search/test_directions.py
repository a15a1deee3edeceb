"""Tests that every choice on validation takes the lowest value of metrics for which lower is better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ..toy_suites import TEXT, suite
from .scripted import choose

DATA = Path(__file__).parents[2] / "data" / "similarity.csv"

#: The better of the two values that each metric takes in these tests, 0.3 and 0.5.
BEST = {"rmse": 0.3, "spearman": 0.5}


def task(metric: str) -> dict[str, Any]:
    columns = {"text": ["first", "second"], "label": "score", "target": "regression"}
    return {"name": "similarity", "csv": str(DATA), **columns, "metric": metric, "train_size": 20}


@pytest.mark.parametrize("metric", BEST)
@pytest.mark.parametrize("objectives", ["metric", "metric and parameters"])
def test_a_search_chooses_the_better_score(metric: str, objectives: str) -> None:
    made = suite(TEXT, tasks=[task(metric)], search={"trials": 2, "objectives": objectives, "by": "score"})
    choices, _ = choose(made, lambda trial: (1.0, {1: 0.3, 2: 0.5}[trial.method["rank"]]))
    (choice,) = choices.ranks
    scores = [choice.tried[place].scores[0] for place in choice.chosen]
    assert scores[-1] == BEST[metric]
    # The table begins with the best point.
    assert choice.overview().lines[0][metric] == {"rmse": "0.3", "spearman": "50.00"}[metric]
    assert choice.merit(choice.tried[choice.ranked[0]]) > choice.merit(choice.tried[choice.ranked[1]])


def test_a_search_by_loss_takes_the_lower_loss_whatever_the_score() -> None:
    made = suite(TEXT, tasks=[task("spearman")], search={"trials": 2})
    choices, _ = choose(made, lambda trial: {1: (0.9, 0.8), 2: (0.4, 0.3)}[trial.method["rank"]])
    (choice,) = choices.ranks
    assert [choice.tried[place].ranks for place in choice.chosen] == [(2,)]
