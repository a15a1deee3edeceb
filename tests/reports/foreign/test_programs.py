"""Tests the files of lm-evaluation-harness, inspect and peft."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorbench import load_results
from tensorbench.methods import UserError

from .made_up_tables import DATA, difference


def test_results_of_lm_evaluation_harness() -> None:
    results = load_results(DATA / "lm_eval")
    scores = results.cells.set_index(["task", "method"])["mean"]
    assert scores["mmlu_pro_plus_health exact_match", "gemma3_12b_u2"] == pytest.approx(0.46)
    assert scores["mmlu_pro_plus_psychology exact_match", "gemma-3-12b-it-base"] == pytest.approx(0.56)
    assert len(scores) == 4
    assert any("3 of 100 answers" in note for note in results.notes)
    assert any("no training seed" in note for note in results.notes)


def test_complete_samples_of_lm_evaluation_harness_are_read(tmp_path: Path) -> None:
    shutil.copytree(DATA / "lm_eval", tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("results_*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        for task, values in content["results"].items():
            samples = tmp_path / f"samples_{task}_{file.stem.removeprefix('results_')}.jsonl"
            if samples.exists():
                scores = [json.loads(line)["exact_match"] for line in samples.read_text().splitlines()]
                values["exact_match,custom-extract"] = np.mean(scores)
                content["n-samples"][task]["effective"] = 3
        file.write_text(json.dumps(content), encoding="utf-8")
    assert len(load_results(tmp_path).predictions) == 4 * 3


def test_models_with_seeds_in_their_names_are_runs_of_one_method(tmp_path: Path) -> None:
    source = next((DATA / "lm_eval").glob("results_*.json"))
    for method, level in (("lora", 0.4), ("dora", 0.5)):
        for seed in range(3):
            content = json.loads(source.read_text(encoding="utf-8"))
            content["model_name"] = f"runs/{method}-seed{seed}"
            for values in content["results"].values():
                values["exact_match,custom-extract"] = level + seed / 100
            folder = tmp_path / f"{method}{seed}"
            folder.mkdir()
            (folder / source.name).write_text(json.dumps(content), encoding="utf-8")
    results = load_results(tmp_path)
    assert {(cell.method, cell.seeds) for cell in results.all_cells} == {("lora", 3), ("dora", 3)}
    assert difference(results)["difference"] == pytest.approx(0.1)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_logs_of_inspect() -> None:
    results = load_results(DATA / "inspect")
    cells = {cell.method: cell for cell in results.all_cells}
    assert cells["llama3.1"].mean == 0
    assert (cells["gpt-4o-mini"].finished, cells["gpt-4o-mini"].failed) == (0, 1)
    assert any("cancelled" in note for note in results.notes)
    assert "collapsed" not in results.answer
    assert results.predictions["prediction"].tolist() == [0]


def test_a_log_of_inspect_is_judged_by_a_metric_of_which_more_is_better(tmp_path: Path) -> None:
    source = DATA / "inspect" / "2024-10-15T12-53-13-04-00_popularity.json"
    log = json.loads(source.read_text(encoding="utf-8"))
    (scored,) = log["results"]["scores"]

    def read_with(**metrics: float) -> list[float | None]:
        scored["metrics"] = {name: {"name": name, "value": value} for name, value in metrics.items()}
        (tmp_path / source.name).write_text(json.dumps(log), encoding="utf-8")
        return [cell.mean for cell in load_results(tmp_path).all_cells]

    assert read_with(stderr=0.01, cer=0.3, accuracy=0.8, mean=0.7) == [0.8]
    with pytest.raises(UserError, match="no metric of which more is better"):
        read_with(stderr=0.01, wer=0.3)


def test_of_the_reducers_of_a_scorer_of_inspect_the_mean_counts(tmp_path: Path) -> None:
    source = DATA / "inspect" / "2024-10-15T12-53-13-04-00_popularity.json"
    log = json.loads(source.read_text(encoding="utf-8"))
    (scored,) = log["results"]["scores"]
    values = {"at_least_2": 0.2, "mean": 0.8, "mode": 0.5}
    log["results"]["scores"] = [
        scored | {"reducer": name, "metrics": {"accuracy": {"name": "accuracy", "value": value}}}
        for name, value in values.items()
    ]
    (tmp_path / source.name).write_text(json.dumps(log), encoding="utf-8")
    results = load_results(tmp_path)
    assert [cell.mean for cell in results.all_cells] == [0.8]
    assert any("by mean, not by at_least_2, mode" in note for note in results.notes)


def test_an_evaluation_repeated_after_failures_counts_once(tmp_path: Path) -> None:
    source = DATA / "inspect" / "2024-10-15T12-53-13-04-00_popularity.json"
    shutil.copy(source, tmp_path)
    for hour in (10, 11):
        text = source.read_text(encoding="utf-8").replace('"success"', '"error"')
        (tmp_path / source.name.replace("T12", f"T{hour}")).write_text(text, encoding="utf-8")
    (cell,) = load_results(tmp_path).all_cells
    assert (cell.finished, cell.failed) == (1, 0)
    shutil.copy(source, tmp_path / source.name.replace("T12", "T13"))
    with pytest.raises(UserError, match="keep one of them"):
        load_results(tmp_path)


def test_a_folder_without_readable_results_says_which_files_are_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"files of results are called .*results_\*\.json"):
        load_results(f"{tmp_path}/")
    (tmp_path / "2024-10-15T12-53-13-04-00_popularity_x.eval").write_bytes(b"PK")
    with pytest.raises(UserError, match="inspect log convert --to json"):
        load_results(tmp_path)


@pytest.mark.parametrize(
    "content", ["{}", "[]", "3", "{", '{"results": {"t": 1}}', '{"eval": {}, "status": "x"}']
)
def test_files_that_are_no_results_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "results_1.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"results_1\.json"):
        load_results(file)


@pytest.mark.parametrize(
    ("metrics", "better", "task"),
    [
        ({"perplexity,none": 5.0, "acc,none": 0.7}, None, "t acc"),
        ({"word_perplexity,none": 5.0}, None, None),
        ({"mine,none": 0.5, "acc,none": 0.7}, None, "t acc"),
        ({"mine,none": 0.5, "acc,none": 0.7}, {"mine": True}, "t mine"),
        ({"acc,none": 0.7, "mine,none": 0.5}, {"acc": False, "mine": True}, "t mine"),
        ({"mine,none": 5.0}, {"mine": False}, None),
    ],
)
def test_the_score_of_lm_evaluation_harness_is_a_metric_of_which_more_is_better(
    tmp_path: Path, metrics: dict[str, float], better: dict[str, bool] | None, task: str | None
) -> None:
    content = {"results": {"t": metrics, "other": {"acc,none": 0.5}}, "model_name": "a"}
    if better:
        content["higher_is_better"] = {"t": better}
    (tmp_path / "results_1.json").write_text(json.dumps(content), encoding="utf-8")
    results = load_results(tmp_path)
    assert [cell.task for cell in results.all_cells] == [*filter(None, [task]), "other acc"]
    assert any("t has no metric of which more is better" in note for note in results.notes) == (task is None)


@pytest.mark.parametrize("better", [{}, {"t": {"mine": None}}])
def test_a_task_of_lm_evaluation_harness_without_a_direction_is_left_out(
    tmp_path: Path, better: dict[str, Any]
) -> None:
    metrics = {"perplexity,none": 5.0, "mine,none": 0.7, "mine_stderr,none": 0.1}
    other = {"acc,none": 0.5}
    content = {"results": {"t": metrics, "other": other}, "model_name": "a", "higher_is_better": better}
    file = tmp_path / "results_1.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    results = load_results(file)
    assert [cell.task for cell in results.all_cells] == ["other acc"]
    # The note has what the file lacks.
    stating = re.search(r"results_1.json: t does not say .* \((.*) would\)", " ".join(results.notes))
    assert stating
    file.write_text(json.dumps(content | json.loads(f"{{{stating[1]}}}")), encoding="utf-8")
    assert [cell.task for cell in load_results(file).all_cells] == ["t mine", "other acc"]


@pytest.mark.parametrize(("score", "finished"), [("NaN", 1), ("0.5", 2)])
def test_a_score_of_lm_evaluation_harness_that_is_nan_has_diverged(
    tmp_path: Path, score: str, finished: int
) -> None:
    for name, value in (("a", "0.5"), ("b", score)):
        content = f'{{"results": {{"t": {{"acc,none": {value}}}}}, "model_name": "{name}"}}'
        (tmp_path / f"results_{name}.json").write_text(content, encoding="utf-8")
    assert sum(cell.finished for cell in load_results(tmp_path).all_cells) == finished
    huge = f'{{"results": {{"t": {{"acc,none": {10**400}}}}}, "model_name": "c"}}'
    (tmp_path / "results_c.json").write_text(huge, encoding="utf-8")
    with pytest.raises(UserError, match=r"results_c\.json"):
        load_results(tmp_path)


def test_equal_files_of_two_configurations_of_peft_are_two_runs(tmp_path: Path) -> None:
    file = next((DATA / "peft").glob("lora--*.json"))
    for name in (file.name, "lora--again.json"):
        shutil.copy(file, tmp_path / name)
    assert len({seed.trial_id for seed in load_results(tmp_path).all_seeds}) == 2


def test_a_folder_of_peft_s_files() -> None:
    results = load_results(DATA / "peft")
    assert {cell.method: cell.parameters for cell in results.all_cells} == {
        "lily--llama-3.2-3B-rank140-mlp-a2-b2-s8.0": 9_485_280,
        "lora--llama-3.2-3B-rank32": 9_175_040,
    }
    assert results.all_seeds[1]["forgetting"] == pytest.approx(0.04996, abs=1e-5)
    assert "2 more seeds each give an interval" in results.answer
    assert difference(results)["reference"] == "lora--llama-3.2-3B-rank32"
