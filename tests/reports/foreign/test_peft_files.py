"""Tests result files of peft's method_comparison, and files that are not peft's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tensorbench import Selection, load_results
from tensorbench.methods import UserError


def content(
    score: float, created: str = "2026-01-01", metric: str = "test accuracy", **train: Any
) -> dict[str, Any]:
    return {
        "run_info": {"created_at": created, "train_config": {"seed": 0}},
        "train_info": {
            "status": "success",
            "metrics": [{metric: 0.0}, {metric: score, "forgetting": 0.1}],
            "num_trainable_params": 10,
            "train_time": 5.0,
            **train,
        },
        "meta_info": {"package_info": {"peft-version": "0.19"}},
    }


def write(folder: Path, name: str, content: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    "file_content",
    [
        "no JSON",
        "[]",
        "{}",
        content(1.5),
        content(0.5) | {"run_info": 3},
        "[" * 100_000,
        content(0.5, train_time=10**400),
        json.dumps(content(0.5)).replace("0.5", f"{10**400}"),
        content(0.5, train_time=-1),
        content(0.5, num_trainable_params=10**30),
        content(0.5, metrics=[{"test accuracy": 0.5, "forgetting": 1e308}]),
    ],
    ids=[
        *("text", "list", "empty", "not a share", "wrong type", "deep"),
        *("long time", "large score", "negative time", "many parameters", "forgetting"),
    ],
)
def test_a_file_that_is_not_of_pefts_is_named(tmp_path: Path, file_content: Any) -> None:
    write(tmp_path / "0", "lora--b", file_content)
    with pytest.raises(UserError, match=r"lora--b\.json"):
        load_results(tmp_path / "0")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_what_is_no_file_is_not_read(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "lora--b.json")
    with pytest.raises(UserError, match=r"lora--b\.json.*not a file"):
        load_results(tmp_path)


def test_a_folder_of_peft_s_files_is_results(tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    write(folder, "lora--rank32", content(0.5))
    write(folder, "ia3--default", content(0.4, num_trainable_params=None))
    write(folder, "vera--default", content(0.4, status="failed"))
    results = load_results(folder)
    assert results.cells["method"].tolist() == ["ia3--default", "lora--rank32"]
    assert results.cells["mean"].tolist() == [0.4, 0.5]
    assert any("not tuned alike" in note for note in results.notes)
    assert any("vera--default" in note for note in results.notes)
    assert [seed["forgetting"] for seed in results.all_seeds] == [0.1, 0.1]
    assert results.curves.empty
    assert results.predictions.empty
    lines = results.overview().lines
    assert [line["score"] for line in lines] == ["0.4000", "0.5000"]
    assert [line["params"] for line in lines] == ["–", "10"]
    assert len(load_results(folder, selection=Selection(methods=["lora--rank32"])).cells) == 1


def test_a_file_that_is_the_same_in_two_folders_is_one_run(tmp_path: Path) -> None:
    for folder, score in (("0", 0.5), ("1", 0.51)):
        write(tmp_path / folder, "lora--0", content(score))
        write(tmp_path / folder, "lora--1", content(0.4))
    cells = load_results(tmp_path / "0", tmp_path / "1").all_cells
    assert [cell.method for cell in cells].count("lora--1") == 1
    assert len(cells) == 3
