"""Tests that every choice on validation takes the lowest value of metrics for which lower is better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tensorbench.search.tuning import with_choices

from ...stored import Result
from ...stored import write as stored
from ..toy_suites import DIGITS, TEXT, plan, suite
from .scripted import choose

DATA = Path(__file__).parents[2] / "data" / "similarity.csv"

#: The better of the two values that each metric takes in these tests, 0.3 and 0.5.
BEST = {"rmse": 0.3, "spearman": 0.5}

TUNING = {"trials": 2, "seeds": [7], "by": "score", "lr": [1e-3, 1e-2], "scale": None, "head_lr": None}


def task(metric: str) -> dict[str, Any]:
    columns = {"text": ["first", "second"], "label": "score", "target": "regression"}
    return {"name": "similarity", "csv": str(DATA), **columns, "metric": metric, "train_size": 20}


@pytest.mark.parametrize("metric", BEST)
def test_tuning_locks_the_better_setting(
    tmp_path: Path, new_store: Callable[[Path], str], metric: str
) -> None:
    made = plan(TEXT, methods=["lora"], tasks=[task(metric)], tuning=TUNING)
    scores = {1e-3: 0.3, 1e-2: 0.5}
    store = stored(
        new_store(tmp_path), made.of("tuning"), lambda trial, row: Result(score=scores[trial.recipe.lr])
    )
    (row,) = with_choices(made, store).of(None).rows
    assert row.tuning is not None
    assert row.tuning.chosen is not None
    assert scores[row.tuning.chosen["lr"]] == BEST[metric]


def test_tuning_chooses_on_a_task_with_a_label(tmp_path: Path, new_store: Callable[[Path], str]) -> None:
    made = plan(methods=["lora"], tasks=[{**DIGITS, "label": "Handwriting"}], tuning=TUNING)
    store = stored(new_store(tmp_path), made.of("tuning"), lambda trial, row: Result(trial.recipe.lr))
    (row,) = with_choices(made, store).of(None).rows
    assert row.tuning is not None
    assert row.tuning.chosen == {"lr": 1e-2}


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
