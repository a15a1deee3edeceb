"""Tests tables with one run of a method on a task, in the layouts of ViT_PEFT_Vision and V-PETL Bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tensorbench import load_results
from tensorbench.reports.report import write_report

GAINS = {"LoRA": 0.0, "good": 0.03, "bad": -0.03, "same": 0.0}


def one_run_a_task(tasks: int = 15) -> pd.DataFrame:
    """As in V-PETL Bench: one seed, and the best epoch's score in percent."""
    rng = np.random.default_rng(0)
    lines = [
        (method, f"d{task}", round(100 * (0.5 + 0.02 * task + gain + rng.normal(0, 0.003)), 2))
        for method, gain in GAINS.items()
        for task in range(tasks)
    ]
    return pd.DataFrame(lines, columns=["method", "dataset", "score"])


def one_sweep_a_task(tasks: int = 12) -> pd.DataFrame:
    """As in ViT_PEFT_Vision: sweeps of unequal size over rates, weight decay and scale, each run once."""
    rng = np.random.default_rng(0)
    lines = [
        (method, f"d{task}", lr, decay, scale, score, score + rng.normal(0, 0.002))
        for method, gain in GAINS.items()
        for scales in [(1,) if method == "LoRA" else (0.1, 1, 10)]
        for task in range(tasks)
        for lr in np.logspace(-4, -2, 5)
        for decay in (1e-4, 1e-2)
        for scale in scales
        for level in [0.5 + 0.02 * task + gain - 0.02 * (np.log10(lr) + 3) ** 2]
        for score in [level + rng.normal(0, 0.003)]
    ]
    columns = ["method", "dataset", "lr", "weight_decay", "scale", "val_acc", "test_acc"]
    return pd.DataFrame(lines, columns=columns)


#: A table, options for it, and the number of tries after which methods are compared.
TABLES: list[tuple[pd.DataFrame, dict[str, Any], int]] = [
    (one_run_a_task(), {"task": "dataset"}, 1),
    (
        one_sweep_a_task(),
        {"task": "dataset", "config": "weight_decay,scale", "validation": "val_acc", "score": "test_acc"},
        10,
    ),
]


@pytest.mark.parametrize(("frame", "options", "k"), TABLES)
def test_tasks_are_the_sample_where_runs_cannot_be(
    frame: pd.DataFrame, options: dict[str, Any], k: int, tmp_path: Path
) -> None:
    results = load_results(frame, **options)
    (block,) = results.analysis.blocks
    assert block.k == k
    tests = results.tables["tasks"].set_index("method")["verdict"]
    assert tests.to_dict() == {"good": "better", "bad": "worse", "same": "equivalent"}
    answer = results.answer
    assert "as the sample, good is significantly better than LoRA; equivalent (within 1 point): sa" in answer
    assert "has an interval" in answer
    assert "tasks" in [figure.kind for figure in results.plot()]
    file = tmp_path / "runs.csv"
    frame.to_csv(file, index=False)
    write_report(str(file), out=tmp_path / "out", formats=["html", "md", "csv", "svg"], **options)
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert "Tasks as the sample" in page
    assert "nothing of another seed" in page
    assert "mean rank" in (tmp_path / "out/tables/tables.md").read_text(encoding="utf-8")
    assert (tmp_path / "out/figures/tasks-0.svg").is_file()


def test_repeated_runs_are_the_sample_if_there_are_enough() -> None:
    frame = pd.concat([one_run_a_task().assign(seed=seed) for seed in range(3)])
    frame["score"] += np.random.default_rng(1).normal(0, 0.1, len(frame))
    assert "tasks" not in load_results(frame, task="dataset").tables


def test_unequal_effort_weakens_verdicts_over_tasks_as_well() -> None:
    frame = one_run_a_task().assign(trials=lambda f: np.where(f["method"] == "good", 30, 3))
    verdicts = load_results(frame, task="dataset").tables["tasks"].set_index("method")["verdict"]
    assert verdicts["good"] == "inconclusive: unequal effort of tuning, 30 against 3"


def test_five_tasks_are_too_few() -> None:
    results = load_results(one_run_a_task(5), task="dataset")
    assert "tasks" not in results.tables
    assert "2 more seeds each give an interval" in results.answer
