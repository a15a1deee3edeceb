"""Tests that tables of runs of other programs are read as they are meant."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tensorbench import Selection, load_results
from tensorbench.methods import UserError
from tensorbench.reports.foreign.table import read_table
from tensorbench.reports.tables import costs_table

from ...messages import naming
from .made_up_tables import DATA, HEADING, difference, seeds, table


def test_a_table_of_seeds_is_compared_with_lora(tmp_path: Path) -> None:
    lines = seeds(lora=[0.80, 0.81, 0.82, 0.81], dora=[0.90, 0.91, 0.925, 0.905])
    results = load_results(table(tmp_path, lines))
    found = difference(results)
    assert (found["method"], found["reference"]) == ("dora", "lora")
    assert found["difference"] == pytest.approx(0.1)
    assert found["low"] > 0.05
    assert "ora is significantly better than lora" in results.answer
    assert results.plot("differences")
    other = load_results(table(tmp_path, lines), selection=Selection(reference="dora"))
    assert difference(other)["difference"] == pytest.approx(-0.1)


def test_every_format_gives_the_same_results(tmp_path: Path) -> None:
    lines = seeds(lora=[80.0, 81.0, 82.0], dora=[82.0, 84.0, 83.0])
    file = table(tmp_path, lines)
    frame = pd.read_csv(file)
    frame.to_json(tmp_path / "runs.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "runs.parquet")
    frame.to_csv(tmp_path / "runs.tsv", sep="\t", index=False)
    sources = [file, frame, *(tmp_path / f"runs.{ending}" for ending in ("jsonl", "parquet", "tsv"))]
    differences = [load_results(source).tables["differences"] for source in sources]
    for each in differences:
        pd.testing.assert_frame_equal(each, differences[0])
    assert difference(load_results(frame))["difference"] == pytest.approx(0.02)


def test_columns_are_named_by_options(tmp_path: Path, call: Callable[..., Any]) -> None:
    lines = ["a,x,1,70.5", "a,x,2,71", "a,x,3,72", "LoRA,x,1,70", "LoRA,x,2,71", "LoRA,x,3,71"]
    file, out = table(tmp_path, lines, "algorithm,dataset,run,acc"), tmp_path / "out"
    table(tmp_path, lines, HEADING, "named.csv")
    options = ["--method", "algorithm", "--task", "dataset", "--score", "acc", "--seed", "run"]
    ended = call("report", str(file), *options, "--out", str(out))
    assert ended.code == 0, ended.err
    assert "inconclusive: a" in ended.out
    assert "–" in call("show", str(file.with_name("named.csv")), "--cell", "0").out
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "Another program made these runs" in page
    assert "suites" not in page
    ended = call("report", str(file), *options[:-1], "runs", "--out", str(out), "--force")
    assert ended.code == 2
    assert re.search("column of runs.csv 'runs'.*acc, algorithm, dataset, run", ended.err.replace("\n", " "))
    ended = call("report", str(file), "--method", "algorithm,dataset", "--out", str(out))
    assert ended.code == 2
    assert "one column" in ended.err


RUNS = [f"{method},{task},{seed},{7 + seed}.5" for method in "AB" for task in "xy" for seed in range(3)]


@pytest.mark.parametrize("heading", ["Method,TASK, Seed ,Score", " method, task, seed, score"])
def test_columns_may_have_capitals_and_blanks(tmp_path: Path, heading: str) -> None:
    cells = load_results(table(tmp_path, RUNS, heading)).all_cells
    assert sorted((cell.method, cell.task, cell.finished) for cell in cells) == [
        (method, task, 3) for method in "AB" for task in "xy"
    ]


def test_names_are_on_one_line_and_visible(tmp_path: Path) -> None:
    frame = pd.DataFrame({"method": ["a\nb", "\x1b[31mred", "nul\0"], "score": [0.5, 0.6, 0.7]})
    cells = load_results(frame).all_cells
    assert [cell.method for cell in cells] == ["a b", "\\u001b[31mred", "nul\\u0000"]


def test_the_columns_of_an_index_are_kept(tmp_path: Path) -> None:
    frame = pd.read_csv(table(tmp_path, seeds(LoRA=[0.5, 0.6, 0.65], a=[0.7, 0.75, 0.9])))
    indexed, expected = frame.set_index("seed"), load_results(frame).tables["differences"]
    indexed.to_parquet(tmp_path / "runs.parquet")
    for source in (tmp_path / "runs.parquet", indexed):
        results = load_results(source)
        assert not any("No column of seeds" in note for note in results.notes)
        pd.testing.assert_frame_equal(results.tables["differences"], expected)


def test_a_run_without_a_score_is_shown_and_in_no_mean(tmp_path: Path) -> None:
    lines = [*seeds(LoRA=[0.5, 0.52, 0.51]), "a,t,0,.9", "a,t,1,", "a,t,2,.92", "a,t,3,nan"]
    results = load_results(table(tmp_path, lines))
    cell = next(cell for cell in results.all_cells if cell.method == "a")
    assert (cell.finished, cell.failed, cell.failures) == (2, 2, "diverged")
    assert cell.mean == pytest.approx(0.91)
    assert "line 6" in next(seed.message for seed in results.all_seeds if seed.failure)
    assert not re.search("a is significantly better", results.answer)
    assert any("2 runs without a score" in note for note in results.notes)


def test_what_a_table_lacks_is_said(tmp_path: Path) -> None:
    lines = ["a,.5", "a,.6", "b,.5", "b,.6"]
    results = load_results(table(tmp_path, lines, "method,score"))
    notes = " ".join(results.notes)
    for column in ("seed", "lr", "validation", "--examples"):
        assert column in notes
    assert "--reference" in results.answer


def test_other_columns_are_noted(tmp_path: Path) -> None:
    lines = [f"{line},{number}.5,ok" for number, line in enumerate(RUNS)]
    results = load_results(table(tmp_path, lines, f"{HEADING},wall,state"))
    assert "Columns not used: wall, state." in results.notes


def test_a_metric_of_which_less_is_better(tmp_path: Path) -> None:
    file = table(tmp_path, seeds(LoRA=[3.0, 3.1, 2.9], a=[1.0, 1.2, 1.1]))
    results = load_results(file, metric="rmse")
    assert difference(results)["difference"] == pytest.approx(1.9)
    with pytest.raises(UserError, match="perplexity"):
        load_results(file, metric="perplexity")


def test_each_task_may_have_its_metric(tmp_path: Path) -> None:
    lines = [f"{line},{'f1' if ',x,' in line else ''}" for line in RUNS]
    assert load_results(table(tmp_path, lines, f"{HEADING},metric")).all_cells
    lines = [f"{line},{'rmse' if ',x,' in line else 'accuracy'}" for line in RUNS]
    with pytest.raises(UserError, match=naming("rmse", "--metric")):
        load_results(table(tmp_path, lines, f"{HEADING},metric"))


def test_runs_without_seeds_are_paired_independently_of_scores_and_lines() -> None:
    rng = np.random.default_rng(0)
    correlations = []
    for _ in range(200):
        frame = pd.DataFrame({"method": ["LoRA", "a"] * 6, "score": rng.normal(0.85, 0.01, 12)})
        runs, _ = read_table(frame.sort_values("score", ascending=False), {})
        by_seed = pd.DataFrame([(run.seed, run.method, run.score) for run in runs]).pivot(index=0, columns=1)
        assert by_seed.index.tolist() == list(range(6))
        correlations.append(np.corrcoef(by_seed.to_numpy().T)[0, 1])
    # Runs of equal rank would have a correlation above .9, and intervals without zero in a third of tables.
    assert np.mean(correlations) == pytest.approx(0, abs=0.1)
    orders = (frame, frame.sort_values("score"), frame[::-1])
    first, *reordered = (load_results(each).tables["differences"] for each in orders)
    for other in reordered:
        pd.testing.assert_frame_equal(first, other)


def test_runs_without_seeds_are_numbered_within_their_budget_and_rate() -> None:
    budgets, rates = ("small", "large"), (1e-4, 1e-3, 1e-2)
    places = [(m, b, rate) for m in ("LoRA", "a") for b in budgets for rate in rates for _ in range(4)]
    scores = np.random.default_rng(0).normal(0.8, 0.01, len(places))
    frame = pd.DataFrame(places, columns=["method", "budget", "lr"]).assign(score=scores, validation=scores)
    cells = load_results(frame).all_cells
    assert [(cell.studies.studies, cell.studies.points) for cell in cells if cell.studies] == [(4, 3)] * 4
    # At one rate, runs are seeds.
    fixed = load_results(frame[frame["lr"] == 1e-3]).all_cells
    assert [(cell.studies, [seed.seed for seed in cell.trials]) for cell in fixed] == [
        (None, [0, 1, 2, 3])
    ] * 4


def test_runs_of_one_seed_in_several_studies_all_count(tmp_path: Path) -> None:
    lines = [f"{method},{study},0,.{5 + study}" for method in ("LoRA", "a") for study in range(3)]
    results = load_results(table(tmp_path, lines, "method,study,seed,score"))
    assert [cell.finished for cell in results.all_cells] == [3, 3]


def test_a_method_without_a_seed_of_the_reference_stays_in_the_answer(tmp_path: Path) -> None:
    lines = [line.replace(",x,", ",x,1") if line < "B" else line for line in RUNS if ",x," in line]
    lines += [line.replace("B", "LoRA") for line in RUNS if line > "B" and ",x," in line]
    for some in (lines, [line for line in lines if "B" not in line]):
        assert "no seed in common with LoRA: A." in load_results(table(tmp_path, some)).answer


def test_tables_and_packs_are_read_as_one(tmp_path: Path) -> None:
    file = table(tmp_path, seeds(LoRA=[0.5, 0.51, 0.52]))
    more = table(tmp_path, seeds(a=[0.6, 0.61, 0.63]), name="more.csv")
    assert difference(load_results(file, more))["method"] == "a"
    (tmp_path / "again").mkdir()
    with pytest.raises(UserError, match="two of these are called"):
        load_results(file, shutil.copy(file, tmp_path / "again"))
    with pytest.raises(UserError, match="for tables"):
        load_results(DATA / "peft", score="score")


def test_a_threshold_in_units_scales_with_a_reference_of_another_budget(tmp_path: Path) -> None:
    scores = {"LoRA,small": (4.0, 4.1, 4.2), "DoRA,large": (3.0, 3.1, 3.3)}
    lines = [f"{name},{seed},{score}" for name, own in scores.items() for seed, score in enumerate(own)]
    results = load_results(table(tmp_path, lines, "method,budget,seed,score"), metric="rmse")
    (block,) = (block for block in results.analysis.blocks if block.budget == "large")
    assert block.against == "LoRA"
    assert block.threshold == pytest.approx(0.041)
    # No row has a budget that it could miss.
    assert costs_table(results.analysis).notes[0] == "Counts exclude the head."


def test_a_task_on_which_nothing_is_compared_is_no_second_task(tmp_path: Path) -> None:
    lines = seeds(LoRA=[0.8, 0.81, 0.82], DoRA=[0.9, 0.91, 0.93])
    one, other = (
        load_results(table(tmp_path, [*lines, *more], name=name)).analysis.notes
        for name, more in (
            ("one.csv", ["LoRA,u,0,0.5"]),
            ("two.csv", [f"{m},u,0,0.5" for m in ("LoRA", "DoRA")]),
        )
    )
    assert [any(note.startswith("One task") for note in notes) for notes in (one, other)] == [True, False]
