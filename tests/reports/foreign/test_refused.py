"""Tests that tables of runs that would be misread are refused, and why is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tensorbench import load_results
from tensorbench.methods import UserError

from ...messages import naming
from .made_up_tables import HEADING, table


@pytest.mark.parametrize(
    ("lines", "heading", "said"),
    [
        (["a,t,0,good"], HEADING, naming("runs.csv, line 2", "score", "'good'")),
        (["a,t,0,.5", "a,t,0,.6"], HEADING, naming("line 3", "seed 0", "line 2", "lr")),
        (["a,t,x,.5"], HEADING, naming("line 2", "seed", "'x'")),
        (["a,t,,.5"], HEADING, naming("line 2", "seed is empty")),
        (["a,t,0,.5", "a,t,1,-.5"], HEADING, naming("line 3", "-0.5", "--metric")),
        (["a,t,0,101"], HEADING, naming("line 2", "101")),
        (["a,t,0"], HEADING, naming("line 2", "4 fields")),
        ([",t,0,.5"], HEADING, naming("line 2", "method is empty")),
        (["a,t,0,.5,0"], HEADING + ",lr", naming("line 2", "lr", "not from 1e-12")),
        (["a,t,0,.5,1e-99"], HEADING + ",lr", naming("line 2", "lr", "1e-99")),
        (["a,t,0,.5,-3"], HEADING + ",parameters", naming("line 2", "parameters", "whole number")),
        (["a,t,0,.5,.5"], HEADING + ",score", naming("runs.csv, line 1", "'score' occurs twice")),
        (["a" * 201 + ",t,0,.5"], HEADING, naming("line 2", "method", "201 characters")),
        ([f"{n},t,0,.5" for n in range(1001)], HEADING, naming("1,001 methods")),
        (["a,t,0,.5", 'a,"t', 'u",1,.5', 'a,"t"x,2,.5'], HEADING, naming("line 5")),
        (["a,t"], "algorithm,task", naming("no column 'method'", "--method", "algorithm, task")),
        ([], HEADING, naming("no line")),
    ],
)
def test_a_bad_table_is_refused_with_its_line(
    tmp_path: Path, lines: list[str], heading: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        load_results(table(tmp_path, lines, heading))


@pytest.mark.parametrize("value", [np.array([1, 2]), [1, 2], {}, "x"])
def test_values_that_are_no_numbers_are_refused(value: Any) -> None:
    frame = pd.DataFrame({"method": ["a", "b"], "score": [0.5, value]})
    with pytest.raises(UserError, match=r"row 1: score .* is no number"):
        load_results(frame)
    with pytest.raises(UserError, match="occurs twice"):
        load_results(pd.concat([frame, frame], axis=1))


RUNS = [f"{method},{task},{seed},{7 + seed}.5" for method in "AB" for task in "xy" for seed in range(3)]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=naming("'task'", "Task", "TASK")):
        load_results(table(tmp_path, RUNS, "method,Task,TASK,score"))


@pytest.mark.parametrize("column", ["dataset", "model", "run"])
def test_runs_that_differ_in_an_unused_column_are_not_pooled(tmp_path: Path, column: str) -> None:
    lines = [line.rpartition(",")[0].rpartition(",")[0] + ",8.5" for line in RUNS]
    with pytest.raises(UserError, match=naming(column, "--task")):
        load_results(table(tmp_path, lines, f"method,{column},score"))


@pytest.mark.parametrize("column", ["epochs", "state", "converged", "size"])
def test_columns_that_tell_how_runs_went_are_no_seeds(tmp_path: Path, column: str) -> None:
    kinds = {"epochs": "345334543354", "state": "aaabaaaabaaa", "converged": "110111101111", "size": "1" * 12}
    lines = [
        f"{line.rpartition(',')[0].rpartition(',')[0]},{kind},{number}.5"
        for number, (line, kind) in enumerate(zip(RUNS, kinds[column], strict=True), 2)
    ]
    assert load_results(table(tmp_path, lines, f"method,task,{column},score")).all_cells


@pytest.mark.parametrize("score", ["loss", "val_error", "RMSE"])
def test_scores_of_which_less_is_better_need_their_metric(tmp_path: Path, score: str) -> None:
    file = table(tmp_path, RUNS, f"method,task,seed,{score}")
    with pytest.raises(UserError, match=naming(score, "--metric")):
        load_results(file, score=score)
    with pytest.raises(UserError, match=naming(score, "--metric")):
        load_results(file, score=score, metric="matthews")
    for metric in ("rmse", "score"):
        assert load_results(file, score=score, metric=metric).all_cells


def test_several_metrics_of_one_task_are_refused(tmp_path: Path) -> None:
    lines = [f"{line},{metric}" for line in RUNS for metric in ("accuracy", "f1")]
    with pytest.raises(UserError, match=naming("accuracy", "f1")):
        load_results(table(tmp_path, lines, f"{HEADING},metric"))


def test_shares_and_percentages_of_one_task_are_refused(tmp_path: Path) -> None:
    lines = [line.replace(",7.5", ",0.075").replace(",8.5", ",.085") if line < "B" else line for line in RUNS]
    lines = [line.replace(",9.5", ",.095") if line < "B" else line for line in lines]
    with pytest.raises(UserError, match=naming("line 2", "0.075", "9.5")):
        load_results(table(tmp_path, lines))


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    options: Any = {"sead": "run"}
    with pytest.raises(UserError, match="did you mean 'seed'"):
        load_results(table(tmp_path, RUNS), **options)
