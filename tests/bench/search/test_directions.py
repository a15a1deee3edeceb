"""What chooses by validation takes less for better where the metric says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from bench.plan.cells import cells
from bench.plan.settings import Setting
from bench.search.point import Point
from bench.search.study import RankSearch
from bench.search.tuning import with_choices

from ...stored import Result
from ...stored import write as stored
from ..toy_suites import TEXT, plan, suite

DATA = Path(__file__).parents[2] / "data" / "similarity.csv"

#: Which of two values is the better one.
BEST = {"rmse": 0.3, "spearman": 0.5}


def task(metric: str) -> dict[str, Any]:
    columns = {"text": ["first", "second"], "label": "score", "target": "regression"}
    return {"name": "similarity", "csv": str(DATA), **columns, "metric": metric, "train_size": 20}


@pytest.mark.parametrize("metric", BEST)
def test_tuning_locks_the_better_setting(
    tmp_path: Path, new_store: Callable[[Path], str], metric: str
) -> None:
    tuning = {"trials": 2, "seeds": [7], "lr": [1e-3, 1e-2], "scale": None, "head_lr": None}
    made = plan(TEXT, methods=["lora"], tasks=[task(metric)], tuning=tuning)
    scores = {1e-3: 0.3, 1e-2: 0.5}
    store = stored(
        new_store(tmp_path), made.of("tuning"), lambda trial, row: Result(score=scores[trial.recipe.lr])
    )
    (row,) = with_choices(made, store).of(None).rows
    assert row.tuning is not None
    assert row.tuning.chosen is not None
    assert scores[row.tuning.chosen["lr"]] == BEST[metric]


@pytest.mark.parametrize("metric", BEST)
@pytest.mark.parametrize("objectives", ["metric", "metric and parameters"])
def test_a_search_chooses_the_better_point(metric: str, objectives: str) -> None:
    made = suite(TEXT, tasks=[task(metric)], search={"trials": 2, "objectives": objectives})
    ((_, cell),) = cells(made)
    search = RankSearch(cell, made.search, optuna.storages.InMemoryStorage(), "toy")  # type: ignore[arg-type]
    for rank, value in ((1, 0.3), (2, 0.5)):
        told = {"key": Point((rank,), Setting()).key, "trials": {1000: "id"}, "parameters": 10}
        values = [value, 10.0] if search.two else [value]
        search._study.add_trial(optuna.trial.create_trial(values=values, user_attrs=told))
    found = search.result()
    assert found.best is not None
    assert found.best.value == BEST[metric]
    if search.two:
        assert [found.trials[number].value for number in found.pareto] == [BEST[metric]]
