"""Tests stored trials as files of peft's comparison and back, and peft's own files as results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tensorbench import Selection, load_results
from tensorbench.machine.outputs import put_files
from tensorbench.methods import UserError
from tensorbench.records.measures import Measure
from tensorbench.reports.peft_comparison import compare_peft, read_peft_results
from tensorbench.reports.peft_files import UNTUNED, peft_files
from tensorbench.reports.study import Study

from .made_up import NAME
from .test_peft_comparison import content, write

#: The fields that peft's own `processing.py` needs, by section of a result file.
READ = {
    "run_info": ["experiment_name", "train_config", "peft_config", "total_time", "peft_branch", "created_at"],
    "train_info": [
        *("accelerator_memory_reserved_avg", "accelerator_memory_max", "accelerator_memory_reserved_99th"),
        *("train_time", "file_size", "num_trainable_params", "status", "metrics"),
    ],
    "meta_info": ["package_info", "system_info"],
}
METRICS = ["test accuracy", "train loss", "train samples", "train total tokens"]
PACKAGES = ["peft", "transformers", "datasets", "torch", "bitsandbytes"]


def test_stored_trials_are_read_back_as_peft_s(rich: str, study: Study, tmp_path: Path) -> None:
    put_files(tmp_path / "ours", peft_files(rich, [NAME]))
    runs, skipped, names = read_peft_results([tmp_path / "ours"])
    seeds = {seed.trial_id[:8]: seed for seed in study.all_seeds if seed.finished}
    assert not skipped
    assert len(runs) == len(names) == len(seeds)
    for run in runs:
        seed = seeds[run.name.rpartition("-")[2]]
        assert (run.score, run.seed, run.model) == (seed.score, seed.seed, seed.backbone)
        assert run.parameters == seed[Measure.ADAPTER_PARAMETERS.column]
        assert run.name.partition("--")[0] == study.all_cells[seed.cell].family
    reference = next(run.name for run in runs if run.name.startswith("lora--"))
    assert len(compare_peft([tmp_path / "ours"], reference).rows) == len(runs)


def test_every_file_has_what_peft_s_program_reads(rich: str) -> None:
    kinds = set()
    for text in peft_files(rich, [NAME]).values():
        file = json.loads(text)
        assert all(set(keys) <= file[part].keys() for part, keys in READ.items())
        assert set(METRICS) <= file["train_info"]["metrics"][-1].keys()
        assert {f"{name}-version" for name in PACKAGES} <= file["meta_info"]["package_info"].keys()
        integers = [
            value for key, value in file["train_info"].items() if key.startswith(("acc", "file", "num"))
        ]
        assert all(isinstance(value, int) for value in integers)
        config = file["run_info"]["peft_config"]
        kinds.add(config and config["peft_type"])
    # Full fine-tuning has no such configuration, which is how peft's table recognises it.
    assert kinds == {None, "HEAD_ONLY", "LORA", "TENSLORA", "LOTR"}


def test_results_that_are_no_shares_are_refused(rich: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorbench.reports.peft_files.SHARES", ("exact_match",))
    with pytest.raises(UserError, match="exact_match"):
        peft_files(rich, [NAME])


def test_a_folder_of_peft_s_files_is_results(tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    write(folder, "lora--rank32", content(0.5))
    write(folder, "ia3--default", content(0.4))
    write(folder, "vera--default", content(0.4, status="failed"))
    results = load_results(folder)
    assert results.cells["method"].tolist() == ["ia3--default", "lora--rank32"]
    assert results.cells["mean"].tolist() == [0.4, 0.5]
    assert {cell.budget for cell in results.all_cells} == {UNTUNED}
    assert any(UNTUNED in note for note in results.notes)
    assert any("vera--default" in note for note in results.notes)
    assert [seed["forgetting"] for seed in results.all_seeds] == [0.1, 0.1]
    assert results.trials.empty
    assert results.curves.empty
    assert results.predictions.empty
    assert [line["score"] for line in results.overview().lines] == ["0.4000", "0.5000"]
    with pytest.raises(UserError, match="peft"):
        results.plot()
    with pytest.raises(UserError, match="selection"):
        load_results(folder, selection=Selection(methods=["lora--rank32"]))
    with pytest.raises(UserError, match="snapshot"):
        load_results(folder, "another")


def test_the_command_writes_the_files(rich: str, call: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("export", NAME, "--peft-comparison", "--store", rich, "--out", str(out))
    assert call(*command).code == 0
    assert {file.name for file in out.glob("*.json")} == set(peft_files(rich, [NAME]))
    assert call(*command).code == 2
    assert call(*command, "--force").code == 0
    assert call(*command, "--force", "--merged").code == 2
