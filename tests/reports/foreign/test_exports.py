"""Tests that exports of MLflow and W&B are read as tables of runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient, search_runs
from mlflow.entities import Metric, Param

from tensorbench import load_results
from tensorbench.methods import UserError

from ...messages import naming

RNG = np.random.default_rng(0)
#: Runs: model, data set, seed, score, and state.
RUNS = [
    (model, data, seed, round(0.7 + gain + RNG.normal(0, 0.003), 4), "finished")
    for model, gain in (("LoRA", 0.0), ("new", 0.05))
    for data in ("a", "b")
    for seed in range(4)
]
#: The last run broke off early.
BROKEN = [*RUNS[:-1], (*RUNS[-1][:3], 0.1, "crashed")]
OPTIONS = {"method": "model", "task": "data", "score": "test_acc"}

Export = Callable[[list[tuple[Any, ...]]], pd.DataFrame]


def mlflow(runs: list[tuple[Any, ...]]) -> pd.DataFrame:
    """As `mlflow.search_runs` returns it: parameters are texts."""
    return pd.DataFrame(
        {
            "run_id": f"id{number}",
            "experiment_id": "1",
            "status": "FINISHED" if state == "finished" else "FAILED",
            "artifact_uri": f"file:///{number}",
            "start_time": "2026-01-01",
            "metrics.test_acc": score,
            "params.model": model,
            "params.data": data,
            "params.seed": str(seed),
            "tags.seed": "other",
            "tags.mlflow.runName": f"bold-{number}",
        }
        for number, (model, data, seed, score, state) in enumerate(runs)
    )


def wandb_page(runs: list[tuple[Any, ...]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Name": f"glad-{number}",
            "State": state,
            "Created": "2026-01-01",
            "Runtime": number,
            "Sweep": "",
            "model": model,
            "data": data,
            "seed": seed,
            "test_acc": score,
        }
        for number, (model, data, seed, score, state) in enumerate(runs)
    )


def wandb_program(runs: list[tuple[Any, ...]]) -> pd.DataFrame:
    """As the guide's program writes it, with dictionaries as texts."""
    return pd.DataFrame(
        {
            "summary": str({"test_acc": score, "_runtime": number, "grad": float("nan")}),
            "config": str({"model": model, "data": data, "seed": seed, "optimizer": {"lr": 0.001}}),
            "name": f"glad-{number}",
        }
        for number, (model, data, seed, score, _) in enumerate(runs)
    )


@pytest.mark.parametrize("export", [mlflow, wandb_page, wandb_program])
def test_an_export_gives_the_results_of_its_runs(export: Export, tmp_path: Path) -> None:
    columns = ["model", "data", "seed", "test_acc", "state"]
    plain = load_results(pd.DataFrame(RUNS, columns=columns), **OPTIONS)
    file = tmp_path / "export.csv"
    export(RUNS).to_csv(file)
    for source in (file, export(RUNS)):
        results = load_results(source, **OPTIONS)
        pd.testing.assert_frame_equal(results.tables["differences"], plain.tables["differences"])
    assert not any("bold" in note or "Runtime" in note for note in results.notes)


def test_the_frame_of_mlflow_itself_is_read(
    tmp_path: Path, new_store: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(new_store(tmp_path))
    experiment = client.create_experiment("mine")
    for model, data, seed, score, _ in RUNS:
        run = client.create_run(experiment)
        params = [Param("model", model), Param("data", data), Param("seed", str(seed))]
        client.log_batch(run.info.run_id, metrics=[Metric("test_acc", score, 0, 0)], params=params)
        client.set_terminated(run.info.run_id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    frame = search_runs([experiment])
    results = load_results(frame, **OPTIONS)
    assert results.tables["differences"]["verdict"].tolist() == ["better"]


@pytest.mark.parametrize("export", [mlflow, wandb_page])
def test_a_run_that_did_not_finish_failed(export: Export) -> None:
    results = load_results(export(BROKEN), **OPTIONS)
    (cell,) = (cell for cell in results.all_cells if (cell.method, cell.task) == ("new", "b"))
    assert (cell.finished, cell.failed, cell.failures) == (3, 1, "error")
    assert any("1 run did not finish" in note for note in results.notes)


def test_nested_settings_are_named_as_there() -> None:
    frame = wandb_program(RUNS)
    results = load_results(frame, **OPTIONS, lr="optimizer.lr")
    assert results.all_cells


@pytest.mark.parametrize("summary", ["{'a': ", "[1]", "open('x')", "{" * 300])
def test_a_dictionary_that_cannot_be_read_is_refused(summary: str) -> None:
    frame = wandb_program(RUNS).assign(summary=summary)
    with pytest.raises(UserError, match=naming("row 0", "dictionary")):
        load_results(frame, **OPTIONS)
