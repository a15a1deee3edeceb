"""Exports of stored trials."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient

import bench.export.write
import bench.store.trained
from bench.backbones import load
from bench.execution.driver import execute
from bench.execution.inline import Inline
from bench.execution.session import session
from bench.export import export_run
from bench.store.records import Record
from bench.store.store import Store
from bench.store.writer import begin_trial
from bench.tasks import TASKS, prepare
from methods import UserError

from ..toy_suites import VISION, plan
from .cases import (
    close,
    shown,
)


@dataclass
class Stored:
    """A store with finished, failed and killed trials."""

    uri: str
    records: list[Record]

    def one(self, status: str, method: str = "") -> Record:
        return next(r for r in self.records if r.status == status and r.tags["method"].startswith(method))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> Stored:
    uri = new_store(tmp_path_factory.mktemp("run"))
    store = Store.create(uri, "toy")
    wild = {"method": "lora", "rank": 1, "training": {"lr": 1e30}}
    made = plan(VISION, methods=["lora", {"method": "tenslora", "variant": "qkv"}, "head_only", wild])
    with session(store) as at_work, Inline("cpu") as place:
        execute(made, list(made.trials), at_work, place, lambda event: None)
    other = plan(VISION, seeds=[7])
    begin_trial(store, other.trials[0], list(other.rows), "accuracy", "none", {}).kill()
    return Stored(uri, store.records())


@pytest.mark.parametrize("method", ["LoRA", "TensLoRA"])
def test_a_stored_trial_gives_the_predictions_that_were_stored(
    stored: Stored, tmp_path: Path, method: str
) -> None:
    record = stored.one("FINISHED", method)
    exported = export_run(stored.uri, record.trial_id[:8], tmp_path / "export")
    file = MlflowClient(stored.uri).download_artifacts(record.run_id, "predictions.parquet", str(tmp_path))
    predictions = pd.read_parquet(file)
    task = VISION["tasks"][0]
    sizes = {key: task[key] for key in ("train_size", "validation_size", "test_size")}
    info = load("tiny-random-vit").info
    split = prepare(TASKS.get("digits"), info.input, max_tokens=128, **sizes).test
    found = shown(exported.folder)["logits"](**split.batch(torch.arange(len(split))))
    assert split.ids.tolist() == predictions["example"].tolist()
    stored_logits = torch.tensor(predictions[[f"logit_{i}" for i in range(10)]].to_numpy())
    close(found, stored_logits)
    readme = (exported.folder / "README.md").read_text()
    for told in (
        record.run_id,
        record.trial_id,
        info.weights_hash,
        "digits",
        "accuracy, test split",
        "| seed | 0",
    ):
        assert told in readme
    assert f"{record.metrics['score']:.4f}" in readme
    again = export_run(stored.uri, record.run_id, tmp_path / "again", merged=True)
    close(shown(again.folder)["logits"](**split.batch(torch.arange(len(split)))), stored_logits)


def test_runs_that_cannot_be_exported(stored: Stored, tmp_path: Path) -> None:
    out = tmp_path / "export"
    finished = stored.one("FINISHED")
    wrong = finished.trial_id[:-1] + "x"
    with pytest.raises(
        UserError, match=rf"no run or trial '{wrong}'.*nearest first:\n  trial {finished.trial_id}"
    ):
        export_run(stored.uri, wrong, out)
    with pytest.raises(UserError, match="no run or trial ''"):
        export_run(stored.uri, "", out)
    with pytest.raises(UserError, match=r"failed, diverged: .*left no adapter"):
        export_run(stored.uri, stored.one("FAILED").run_id, out)
    with pytest.raises(UserError, match="was stopped before it finished"):
        export_run(stored.uri, stored.one("KILLED").trial_id, out)
    with pytest.raises(UserError, match="there is no adapter; --merged"):
        export_run(stored.uri, stored.one("FINISHED", "head").run_id[:12], out)
    with pytest.raises(UserError, match="there is no store"):
        export_run(f"sqlite:///{tmp_path}/none.db", wrong, out)
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        export_run(stored.uri, finished.run_id, out)


def test_which_run_an_id_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(run_id: str, trial: str, status: str) -> Any:
        info = SimpleNamespace(run_id=run_id, status=status, start_time=0, artifact_uri="")
        tags = {"trial_id": trial, "mlflow.runName": f"name of {run_id}"}
        return SimpleNamespace(info=info, data=SimpleNamespace(tags=tags, metrics={}))

    runs = [
        run("aa01", "cc01", "FAILED"),
        run("aa02", "cc01", "FINISHED"),
        run("aa03", "cc01", "FINISHED"),
        run("bb01", "cc02", "FINISHED"),
        run("bb02", "cc03", "FINISHED"),
    ]
    monkeypatch.setattr(bench.store.trained, "find_runs", lambda *_: runs)
    client: Any = SimpleNamespace(search_experiments=list)
    expected = {
        "aa01": "aa01",
        "AA03": "aa03",
        "cc01": "aa02",
        "cc02": "bb01",
        "bb01": "bb01",
        "bb02": "bb02",
    }
    assert {one: bench.store.trained._find(client, one).run_id for one in expected} == expected
    with pytest.raises(UserError, match=r"(?s)'cc' is the beginning of several.*cc01.*aa02.*cc02.*cc03"):
        bench.store.trained._find(client, "cc")
    with pytest.raises(UserError, match=r"(?s)several.*aa01.*\(failed\).*aa02.*aa03"):
        bench.store.trained._find(client, "aa")
    with pytest.raises(UserError, match=r"(?s)no run or trial 'cc04'.*nearest first:\n  trial cc0"):
        bench.store.trained._find(client, "cc04")


def test_weights_that_are_not_the_trials(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.backbones.random_weights.SEED", 1)
    with pytest.raises(UserError, match=r"is not the one of the trial.*seed=0.*seed=1"):
        export_run(stored.uri, stored.one("FINISHED", "LoRA").run_id, tmp_path / "export")


def test_an_empty_store(new_store: Callable[[Path], str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no trial yet"):
        export_run(new_store(tmp_path), "abc", tmp_path / "export")
