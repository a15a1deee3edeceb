"""Tests runs of suites from the file to the MLflow store, with real models and data."""

from __future__ import annotations

import json
import re
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tensorbench.backbones import load
from tensorbench.execution.driver import pending
from tensorbench.methods import from_identity
from tensorbench.plan.suite import load_suite
from tensorbench.records.record import Record
from tensorbench.records.words import RunKind
from tensorbench.store.store import Store
from tensorbench.tasks import TASKS, prepare
from tensorbench.training.loop import evaluate
from tensorbench.training.measure import LIBRARIES

from ..fixtures import Call, NewStore
from ..predicted import frame_of
from .toy_runs import Ran, forbid_trials, run
from .toy_suites import MOVIES, TEXT, plan

STEPS = 10
METHODS: list[Any] = ["lora", "head_only", {"method": "tenslora", "variant": "att"}]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore, call: Call) -> Ran:
    return run(
        tmp_path_factory.mktemp("finished"),
        new_store,
        call,
        TEXT,
        methods=METHODS,
        budgets=[{"isorank": 2}, {"isoparameters": 2}],
        seeds=[0, 1],
        training={"lr": 5e-3, "batch_size": 16, "steps": STEPS},
        closing="The end.",
    )


# --- what is stored ---


def test_every_trial_of_the_plan_finishes_and_lora_in_two_blocks_runs_once(finished: Ran) -> None:
    assert finished.ended.code == 0
    records = finished.store.records()
    assert {record.status for record in records} == {"FINISHED"}
    # LoRA r=2, the head only, and the variant under either budget; two seeds.
    assert len(records) == 8
    assert sorted(record.trial_id for record in records) == sorted(trial.id for trial in finished.plan.trials)
    budgets = json.loads(finished.by_method("LoRA").tags["budgets"])
    assert [entry["budget"] for entry in budgets] == ["isorank 2", "isoparameters 2"]
    assert [entry["ratio"] for entry in budgets] == [None, 1.0]


def test_the_terminal_shows_progress_and_a_table(finished: Ran) -> None:
    out = finished.ended.out
    assert "8 trials, 8 to run" in out
    assert out.count("✓") == 8
    assert re.search("movie-sentiment · tiny-random-bert · .*accuracy", out)
    assert "± is the standard deviation over seeds" in out
    scores = [finished.by_method("LoRA", seed).metrics["score"] for seed in (0, 1)]
    mean, deviation = pd.Series(scores).mean(), pd.Series(scores).std()
    assert f"{mean:.4f} ± {deviation:.4f}" in out
    assert out.rstrip().endswith("The end.")
    assert "head only · movie-sentiment" in out


def test_metrics_of_steps_epochs_and_the_end_are_stored(finished: Ran) -> None:
    record = finished.by_method("TensLoRA att")
    client = finished.store.client
    losses = client.get_metric_history(record.run_id, "train/loss")
    assert sorted(metric.step for metric in losses) == list(range(1, STEPS + 1))
    epochs = -(-STEPS // (MOVIES["train_size"] // 16))
    for key in ("validation/accuracy", "validation/loss"):
        steps = sorted(metric.step for metric in client.get_metric_history(record.run_id, key))
        assert steps == list(range(1, epochs + 1))
    metrics = record.metrics
    assert 0 <= metrics["score"] <= 1
    assert metrics["score_loss"] > 0
    assert metrics["cost/steps"] == STEPS
    assert metrics["cost/step_ms"] > 0
    assert metrics["cost/seconds"] > 0
    assert metrics["cost/peak_mib"] > 1
    validations = client.get_metric_history(record.run_id, "validation/accuracy")
    best = max(validations, key=lambda m: (m.value, -m.step))
    assert metrics["selected/epoch"] == best.step
    assert metrics["selected/validation"] == best.value


def test_parameter_counts_and_budget_are_stored(finished: Ran) -> None:
    rows = {row.trials[seed]: row for row in finished.plan.rows for seed in row.trials}
    for record in finished.store.records():
        row = rows[record.trial_id]
        assert record.metrics["parameters/adapter"] == row.parameters
        assert record.metrics["parameters/head"] == 2 * 32 + 2
        assert record.tags["ranks"] == ",".join(map(str, row.ranks))
        assert record.tags["budget_missed"] == ("yes" if row.within is False else "no")
    assert finished.by_method("head only").tags["budget"] == "own"


def test_the_resolved_configuration_is_stored_whole(finished: Ran) -> None:
    record = finished.by_method("LoRA")
    trial = next(t for t in finished.plan.trials if t.id == record.trial_id)
    config = json.loads(finished.artifact(record, "config.json").read_text())
    assert type(trial).model_validate(config["trial"]).id == trial.id
    params = finished.store.client.get_run(record.run_id).data.params
    assert params["recipe.lr"] == "0.005"
    assert params["recipe.head_lr"] == "0.005"
    assert params["recipe.precision"] == "fp32"
    assert params["method.rank"] == "2"
    assert params["task.train_size"] == str(MOVIES["train_size"])
    assert params["seed"] == "0"


def test_provenance_is_stored(finished: Ran) -> None:
    record = finished.by_method("LoRA")
    for name in (
        "git_commit",
        "git_dirty",
        "cpu",
        "python",
        "harness",
        *(f"version_{lib}" for lib in LIBRARIES),
    ):
        assert record.tags[f"provenance.{name}"], name
    params = finished.store.client.get_run(record.run_id).data.params
    assert params["data.data_hash"] == TASKS.get("movie-sentiment").data_hash
    assert params["weights_hash"] == load("tiny-random-bert").info.weights_hash


@pytest.mark.parametrize("method", ["LoRA", "TensLoRA att", "head only"])
def test_predictions_are_those_of_the_stored_adapter_and_give_the_score(finished: Ran, method: str) -> None:
    record = finished.by_method(method, seed=1)
    trial = next(t for t in finished.plan.trials if t.id == record.trial_id)
    backbone = load(trial.backbone)
    sizes = {key: value for key, value in MOVIES.items() if key != "task"}
    data = prepare(TASKS.get("movie-sentiment"), backbone.info.input, **sizes)

    frame = frame_of(finished.artifact(record, "predictions.safetensors").read_bytes())
    assert frame["example"].tolist() == data.test.ids.tolist()
    assert frame["label"].tolist() == data.test.labels.tolist()
    assert len(frame) == MOVIES["test_size"]
    assert (frame["label"] == frame["prediction"]).mean() == pytest.approx(record.metrics["score"])

    tensors = load_file(finished.artifact(record, "adapter.safetensors"))
    assert {name.partition(".")[0] for name in tensors} <= {"adapter", "head"}
    parts: dict[str, dict[str, torch.Tensor]] = {"adapter": {}, "head": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    backbone.reset(data.classes, torch.Generator().manual_seed(99))
    adapter = from_identity(trial.method).attach(backbone, torch.Generator().manual_seed(99))
    adapter.load(parts["adapter"])
    backbone.head.load_state_dict(parts["head"])
    result = evaluate(backbone, adapter, data.test, trial.recipe, data.objective)
    stored = torch.tensor(frame[["logit_0", "logit_1"]].to_numpy())
    assert torch.allclose(result.logits, stored, atol=1e-6)


# --- a second start ---


def test_a_second_start_loads_nothing_and_trains_nothing(
    finished: Ran, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = finished.store.records()
    forbid_trials(monkeypatch)
    real = Store.records
    reads: list[tuple[RunKind, str | None]] = []

    def records(self: Store, kind: RunKind = RunKind.TRIAL, *, trial_id: str | None = None) -> list[Record]:
        reads.append((kind, trial_id))
        return real(self, kind, trial_id=trial_id)

    monkeypatch.setattr(Store, "records", records)
    rerun = call("run", finished.suite, "--store", finished.uri)
    assert rerun.code == 0, rerun.err
    assert "8 trials, 0 to run" in rerun.out
    assert "The end." in rerun.out
    # The results of all trials are read once, for the start and for the summary.
    assert reads.count((RunKind.TRIAL, None)) == 1
    assert finished.store.records() == before


def test_a_suite_that_grew_runs_only_what_is_new(finished: Ran) -> None:
    made = load_suite(finished.suite)
    grown = plan(
        TEXT,
        methods=METHODS,
        budgets=[{"isoparameters": 2}],
        seeds=[0, 5],
        training=made.training.model_dump(exclude_unset=True),
    )
    assert [trial.seed for trial in pending(grown, finished.store.records())] == [5, 5, 5]
