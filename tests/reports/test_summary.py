"""Tests that means and deviations cover finished seeds only, and that unfinished cells are shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tensorbench.methods.validation import validate
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import Suite
from tensorbench.records.record import failed
from tensorbench.records.words import Status
from tensorbench.reports.summary import Summary, summarise
from tensorbench.store.store import Store

from ..fixtures import NewStore
from ..stored import begun
from .made_up import printed

#: By method and seed: the outcomes of the seed's runs, oldest first. An outcome is a score or a failure.
#: Seeds that are not listed never started.
RESULTS: dict[str, dict[int, list[Any]]] = {
    "LoRA": {0: [0.5], 1: [0.8], 2: [0.65]},
    "head only": {0: ["diverged"], 1: [0.25], 2: [0.75]},
    "TensLoRA att": {0: ["KILLED", 0.4, 0.9], 2: ["error"]},
    "TensLoRA qkv": {0: [0.9]},
    "TensLoRA depth": {0: ["out of memory"], 1: ["diverged"], 2: ["diverged"]},
}


SUITE: dict[str, Any] = {
    "name": "toy",
    "backbones": ["tiny-random-vit"],
    "tasks": ["digits"],
    "methods": ["lora", "head_only", {"method": "tenslora", "each": {"variant": ["att", "qkv", "depth"]}}],
    "budgets": [{"isoparameters": 2}],
    "seeds": [0, 1, 2],
    "closing": "That is [all].",
    "floor": "none",
}


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> Summary:
    plan = make_plan(validate(Suite, SUITE, "suite"))
    store = Store.create(new_store(tmp_path_factory.mktemp("summary")), "toy")
    store.end(store.begin_suite(plan), Status.FINISHED)
    trials = {trial.id: trial for trial in plan.trials}
    for row in plan.rows:
        for seed, outcomes in RESULTS[row.title].items():
            for outcome in outcomes:
                run = begun(store, trials[row.trials[seed]], [row])
                if isinstance(outcome, float):
                    for key, value in (
                        ("score", outcome),
                        ("cost/step_ms", 10.0 * (seed + 1) ** 2),
                        ("cost/peak_mib", 100.0 + seed),
                    ):
                        store.client.log_metric(run.run_id, key, value)
                    store.client.set_terminated(run.run_id, "FINISHED")
                elif outcome == "KILLED":
                    run.kill()
                else:
                    run.end(failed(outcome, "message", "trace"))
    return summarise(store, plan.stored())


#: By method: mean, deviation, finished and failed seeds of three, and kinds of failures.
MEANS: dict[str, tuple[float | None, float | None, int, int, str]] = {
    # ((0.15)² + (0.15)² + 0) / (3 - 1) = 0.0225
    "LoRA": (0.65, 0.15, 3, 0, ""),
    "head only": (0.5, 0.5 / 2**0.5, 2, 1, "diverged"),
    # A trial that is stored twice counts by its first result, and a killed run not at all.
    "TensLoRA att": (0.4, None, 1, 1, "error"),
    "TensLoRA qkv": (0.9, None, 1, 0, ""),
    "TensLoRA depth": (None, None, 0, 3, "diverged, out of memory"),
}


def test_means_are_of_finished_seeds_and_others_are_counted(summary: Summary) -> None:
    cells = {cell.method: cell for cell in summary.results.all_cells}
    for method, (mean, sd, finished, lost, failures) in MEANS.items():
        cell = cells[method]
        assert (cell.mean, cell.sd) == (mean and pytest.approx(mean), sd and pytest.approx(sd)), method
        assert (cell.finished, cell.failed, cell.failures) == (finished, lost, failures), method
        assert (cell.seeds, cell.missing) == (3, 3 - finished - lost), method
    lora = cells["LoRA"]
    assert (lora["step_ms"], lora["peak_mib"]) == (40, 102)
    assert (lora.metric, lora.evaluated) == ("accuracy", "test")
    assert (lora.parameters, lora.percent_of_lora, lora.ratio) == (768, 50, 1)
    assert not summary.complete


def test_the_table_shows_scores_losses_and_the_closing_line(summary: Summary) -> None:
    shown = printed(*summary.tables("toy"), width=140)
    lines = {row.split("  ")[0].strip(): row for row in shown.splitlines() if row.strip()}
    assert "0.6500 ± 0.1500" in lines["LoRA"]
    assert "3/3" in lines["LoRA"]
    assert "50.00" in lines["LoRA"]
    # Step times on a shared machine are not comparable.
    assert "ms/step" not in shown
    assert "2/3 ✗ diverged" in lines["head only"]
    assert "0.4000" in lines["TensLoRA att"]
    assert "±" not in lines["TensLoRA att"]
    assert "1/3" in lines["TensLoRA qkv"]
    assert "±" not in lines["TensLoRA depth"]
    assert "0/3 ✗ diverged, out of memory" in lines["TensLoRA depth"]
    assert "digits · tiny-random-vit · test accuracy" in shown
    assert re.search("5 trial.* failed.*`--retry-failed`", shown)
    assert re.search("3 trial.* missing", shown)
    assert "That is [all]." in shown


def test_a_narrow_terminal_shows_names_and_scores_whole(summary: Summary) -> None:
    shown = printed(*summary.tables("toy"), width=80)
    for text in ("TensLoRA depth", "0.6500 ± 0.1500", "2/3 ✗ diverged"):
        assert text in shown


def test_missing_trials_shared_by_two_budgets_count_once(tmp_path: Path, new_store: NewStore) -> None:
    budgets = [{"isorank": 2}, {"isoparameters": 2}]
    plan = make_plan(validate(Suite, {**SUITE, "methods": ["lora"], "budgets": budgets}, "suite"))
    store = Store.create(new_store(tmp_path), "toy")
    first, *_ = plan.trials
    run = begun(store, first, [plan.rows[0]])
    store.client.set_terminated(run.run_id, "FINISHED")  # though without a score
    shown = printed(*summarise(store, plan.stored()).tables("toy"))
    assert "1 trial(s) failed" in shown
    assert re.search("2 trial.* missing", shown)
