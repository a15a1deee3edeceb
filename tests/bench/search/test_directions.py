"""Tests that every choice on validation takes the lowest value of metrics for which lower is better."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console

import tensorbench.search.study
from tensorbench.cli.results import print_search
from tensorbench.plan.make import cells
from tensorbench.plan.settings import Setting
from tensorbench.records.search_results import SearchPoint
from tensorbench.records.words import PointState
from tensorbench.reports.ablation import StoredAblation
from tensorbench.search.study import RankSearch, SampledPoint
from tensorbench.search.tuning import with_choices

from ...stored import Result, search_found
from ...stored import write as stored
from ..toy_suites import DIGITS, TEXT, plan, suite

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
def test_a_search_chooses_the_better_point(metric: str, objectives: str) -> None:
    made = suite(TEXT, tasks=[task(metric)], search={"trials": 2, "objectives": objectives, "by": "score"})
    ((_, cell),) = cells(made)
    search = RankSearch(cell, made.search, optuna.storages.InMemoryStorage(), "toy")  # type: ignore[arg-type]
    for rank, value in ((1, 0.3), (2, 0.5)):
        attributes = {"key": SampledPoint((rank,), Setting()).key, "trials": {1000: "id"}, "parameters": 10}
        values = [value, 10.0] if search.two else [value]
        search._study.add_trial(optuna.trial.create_trial(values=values, user_attrs=attributes))
    result = search.result()
    assert result.best is not None
    assert result.best.value == BEST[metric]
    if search.two:
        assert [result.trials[number].value for number in result.pareto] == [BEST[metric]]


@pytest.mark.parametrize("objectives", ["metric", "metric and parameters"])
def test_a_search_by_loss_takes_the_lower_loss_whatever_the_score(objectives: str) -> None:
    made = suite(TEXT, tasks=[task("spearman")], search={"trials": 2, "objectives": objectives})
    ((_, cell),) = cells(made)
    search = RankSearch(cell, made.search, optuna.storages.InMemoryStorage(), "toy")  # type: ignore[arg-type]
    for rank, loss, score in ((1, 0.9, 0.8), (2, 0.4, 0.3), (3, 0.4, 0.9)):
        attributes = {
            "key": SampledPoint((rank,), Setting()).key,
            "trials": {1000: "id"},
            "parameters": 10 * rank,
        }
        values = [loss, 10.0 * rank] if search.two else [loss]
        search._study.add_trial(
            optuna.trial.create_trial(values=values, user_attrs={**attributes, "score": score})
        )
    if search.two:
        # A result that the search discarded, because its trial is tried again.
        search._study.add_trial(optuna.trial.create_trial(values=[0.1, 10.0], user_attrs=attributes))
        search._study.set_user_attr("again 3", True)
    result = search.result()
    assert result.best is not None
    assert (result.by, result.best.ranks, result.best.loss, result.best.value) == ("loss", (2,), 0.4, 0.3)
    if search.two:
        assert [result.trials[number].ranks for number in result.pareto] == [(1,), (2,)]


@pytest.mark.parametrize("metric", BEST)
def test_importance_is_of_the_better_half(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values: list[float] = []

    def importances(names: Any, points: Any) -> dict[str, Any]:
        values.extend(value for _, value in points)
        return {}

    monkeypatch.setattr(tensorbench.search.study, "importances", importances)
    made = suite(TEXT, tasks=[task(metric)], search={"trials": 2, "by": "score"})
    ((_, cell),) = cells(made)
    search = RankSearch(cell, made.search, optuna.storages.InMemoryStorage(), "toy")  # type: ignore[arg-type]
    for rank, value in ((1, 0.3), (2, 0.5)):
        attributes = {"key": SampledPoint((rank,), Setting()).key, "trials": {1000: "id"}, "parameters": 10}
        search._study.add_trial(optuna.trial.create_trial(values=[value], user_attrs=attributes))
    search.result()
    assert abs(max(values)) == BEST[metric]


@pytest.mark.parametrize("metric", BEST)
def test_the_best_points_are_shown_first(metric: str) -> None:
    points = [
        SearchPoint(
            number=number,
            state=PointState.COMPLETE,
            ranks=(number,),
            parameters=10,
            value=value,
            trial_id="0",
            trials={1000: "0"},
        )
        for number, value in enumerate((0.41, 0.3, 0.42, 0.43, 0.5, 0.44, 0.45))
    ]
    result = search_found(trials=tuple(points))
    head = {"name": "n", "run_id": "", "method": "", "task": "", "backbone": "", "budget": ""}
    out = io.StringIO()
    stored_search = StoredAblation(kind="search", **head, modes=["rank"], metric=metric)
    print_search(Console(file=out, width=100), result, stored_search)
    lines = [line for line in out.getvalue().splitlines() if "0." in line]
    shown = [float(line.split()[-1]) for line in lines]
    assert (len(shown), shown[0]) == (5, BEST[metric])
