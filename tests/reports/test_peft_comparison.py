"""Tests the comparison of peft's published results: with known truth, and on files that are not peft's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorbench import Selection, load_results
from tensorbench.methods import UserError
from tensorbench.reports.inference.reruns import run_noise
from tensorbench.reports.peft_comparison import (
    REFERENCE,
    as_json,
    as_markdown,
    compare_peft,
)

QUESTIONS = 1319


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


def snapshots(folder: Path, scores: Sequence[Sequence[float]]) -> list[Path]:
    """Writes a folder of result files for each wave, and returns the folders.

    A wave is one round of runs of all rows. `scores` has one list for each wave: first the score of the
    reference, then those of the other rows.
    """
    for wave, row_scores in enumerate(scores):
        for row, score in enumerate(row_scores):
            name = REFERENCE if row == 0 else f"lora--{row}"
            write(folder / str(wave), name, content(score, f"2026-01-{wave + 1:02}"))
    return [folder / str(wave) for wave in range(len(scores))]


def drawn(shares: Sequence[float], waves: int, rng: np.random.Generator, run_sd: float) -> list[list[float]]:
    """Random scores: one list for each wave, with one score for each row. All rows answer the same questions.

    `shares` are the rows' expected shares of right answers. A wave shifts all of them alike, and each run
    adds noise of its own with the standard deviation `run_sd`.
    """
    hardness = rng.uniform(size=QUESTIONS)
    answers = []
    for _ in range(waves):
        shift = rng.normal(0, 0.01)
        chances = [np.clip(share + shift + rng.normal(0, run_sd), 0, 1) for share in shares]
        answers.append([float((hardness < chance).mean()) for chance in chances])
    return answers


def test_equal_methods_are_called_different_in_at_most_a_twentieth_of_comparisons(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for number in range(60):
        folders = snapshots_in(tmp_path / str(number), drawn([0.48] * 8, 3, rng, run_sd=0.01))
        wrong += any(entry.verdict != "inconclusive" for entry in compare_peft(folders).against_reference)
    assert wrong <= 3


def snapshots_in(folder: Path, scores: Sequence[Sequence[float]]) -> list[Path]:
    folder.mkdir()
    return snapshots(folder, scores)


def test_a_difference_far_beyond_the_noise_is_called(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    comparison = compare_peft(snapshots(tmp_path, drawn([0.48, 0.65, 0.30, 0.49], 2, rng, run_sd=0.005)))
    verdicts = {entry.row: entry.verdict for entry in comparison.against_reference}
    assert verdicts == {"lora--1": "better", "lora--2": "worse", "lora--3": "inconclusive"}
    assert comparison.naive >= comparison.real >= 5


def test_run_noise_is_that_of_the_residuals_beside_rows_and_waves() -> None:
    # Two rows in two waves: one degree of freedom, residuals of a quarter of the interaction (which is 2).
    noise = run_noise([0, 0, 1, 1], [0, 1, 0, 1], [0.0, 1.0, 10.0, 13.0], None)
    assert noise is not None
    assert noise.freedom == 1
    assert noise.dispersion == pytest.approx(4 * 0.5**2)
    assert run_noise([0, 1], [0, 0], [0.1, 0.2], None) is None


def test_run_noise_of_shares_recovers_its_dispersion() -> None:
    rng = np.random.default_rng(2)
    rows, waves = np.repeat(np.arange(40), 4), np.tile(np.arange(4), 40)
    shares = np.linspace(0.2, 0.6, 40)[rows] + np.array([0.0, 0.01, -0.01, -0.02])[waves]
    scores = rng.binomial(QUESTIONS, shares) / QUESTIONS
    noise = run_noise(rows.tolist(), waves.tolist(), scores.tolist(), QUESTIONS)
    assert noise is not None
    assert noise.dispersion == pytest.approx(1, abs=0.3)


def test_reruns_count_the_orders_they_reverse(tmp_path: Path) -> None:
    folders = snapshots(tmp_path, [[0.50, 0.51, 0.20], [0.49, 0.48, 0.19]])
    (rerun,) = compare_peft(folders).reruns
    assert (rerun.rows, rerun.called, rerun.reversed, rerun.uncalled, rerun.uncalled_reversed) == (
        3,
        2,
        0,
        1,
        1,
    )
    assert rerun.shift == pytest.approx(-0.05 / 3)


def test_an_unchanged_file_in_two_folders_is_one_run(tmp_path: Path) -> None:
    for wave in ("0", "1"):
        write(tmp_path / wave, REFERENCE, content(0.5))
        write(tmp_path / wave, "lora--b", content(0.4))
    comparison = compare_peft([tmp_path / "0", tmp_path / "1"])
    assert len(comparison.runs) == 2
    assert comparison.noise is None
    # The intervals come from the questions alone.
    assert comparison.against_reference[0].interval is not None


def test_a_score_that_is_no_share_has_no_interval_without_reruns(tmp_path: Path) -> None:
    for name, score in ((REFERENCE, 0.6), ("lora--b", 0.7)):
        write(tmp_path / "0", name, content(score, metric="test dino_similarity"))
    comparison = compare_peft([tmp_path / "0"])
    assert comparison.against_reference[0].interval is None
    assert comparison.naive == 0
    assert "[" not in as_markdown(comparison)


def test_a_failed_run_is_listed_and_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "0", REFERENCE, content(0.5))
    write(tmp_path / "0", "lora--b", content(0.5, status="failed"))
    alone = compare_peft([tmp_path / "0"])
    assert [run.name for run in alone.runs] == [REFERENCE]
    assert alone.skipped == ["lora--b.json"]
    # Nor does its score of an earlier folder stand for the failed run.
    write(tmp_path / "before", REFERENCE, content(0.5))
    write(tmp_path / "before", "lora--b", content(0.9))
    comparison = compare_peft([tmp_path / "before", tmp_path / "0"])
    assert [row.name for row in comparison.rows] == [REFERENCE]
    assert "left out: `lora--b.json`" in as_markdown(comparison)


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
        compare_peft([tmp_path / "0"])


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_what_is_no_file_is_not_read(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "lora--b.json")
    with pytest.raises(UserError, match=r"lora--b\.json: no file"):
        compare_peft([tmp_path])


def test_results_without_the_usual_reference_ask_for_one(tmp_path: Path) -> None:
    write(tmp_path / "0", "lora--b", content(0.5))
    with pytest.raises(UserError, match=r"--reference: give one.* lora--b$"):
        compare_peft([tmp_path / "0"])
    assert compare_peft([tmp_path / "0"], "lora--b").reference == "lora--b"


def test_bad_folders_and_references_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        compare_peft([tmp_path / "empty"])
    write(tmp_path / "0", REFERENCE, content(0.5))
    with pytest.raises(UserError, match="reference"):
        compare_peft([tmp_path / "0"], "lora--rank32")


def test_the_page_and_the_json_hold_every_row_and_escape_names(tmp_path: Path) -> None:
    write(tmp_path / "0", REFERENCE, content(0.5))
    write(tmp_path / "0", "lora--a|b`<c>\u202e", content(0.4))
    comparison = compare_peft([tmp_path / "0"])
    page = as_markdown(comparison)
    assert page.count("\n| lora") == 2
    assert "\u202e" not in page
    stored = json.loads(as_json(comparison))
    assert [row["sha256"] for row in stored["rows"]] == [row.sha256 for row in comparison.rows]
    assert stored["against_reference"][0]["verdict"] == comparison.against_reference[0].verdict


def test_the_command_prints_or_writes_the_comparison(call: Callable[..., Any], tmp_path: Path) -> None:
    folders = snapshots(tmp_path, [[0.5, 0.4], [0.5, 0.41]])
    ended = call("report", "--peft-results", *map(str, folders))
    assert ended.code == 0
    assert "| lora--1 |" in ended.out
    out = tmp_path / "out"
    assert call("report", "--peft-results", *map(str, folders), "--out", str(out)).code == 0
    assert (out / "comparison.md").read_text(encoding="utf-8") == ended.out
    assert json.loads((out / "comparison.json").read_text(encoding="utf-8"))["pairs"] == 1
    assert call("report", "--peft-results", str(folders[0]), "--out", str(out)).code == 2
    assert call("report", "--peft-results", str(tmp_path / "nowhere")).code == 2


# --- as results ---


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
    folders = snapshots(tmp_path, [[0.5, 0.4], [0.5, 0.41]])
    write(folders[1], "lora--1", content(0.4, "2026-01-01"))
    cells = load_results(*folders).all_cells
    assert [cell.method for cell in cells].count("lora--1") == 1
    assert len(cells) == 3
