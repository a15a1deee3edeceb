"""Tests results of other programs: tables of runs, and files of lm-evaluation-harness, inspect and peft."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tensorbench import Selection, load_results
from tensorbench.methods import UserError
from tensorbench.reports.chosen import choose
from tensorbench.reports.foreign.table import read_table
from tensorbench.reports.inference.studies import CompleteStudies, of_pair
from tests.messages import naming

DATA = Path(__file__).parents[1] / "data" / "foreign"

HEADING = "method,task,seed,score"


def table(folder: Path, lines: Sequence[str], heading: str = HEADING, name: str = "runs.csv") -> Path:
    file = folder / name
    file.write_text("\n".join([heading, *lines, ""]), encoding="utf-8")
    return file


def seeds(**scores: Sequence[float]) -> list[str]:
    """Lines of a table with a seed per score of each method."""
    return [f"{name},t,{seed},{score}" for name, own in scores.items() for seed, score in enumerate(own)]


def difference(results: Any, k: int = 1) -> Any:
    frame = results.tables["differences"]
    return frame[frame["k"] == k].iloc[0]


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
    assert "undecided: a" in ended.out
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


@pytest.mark.parametrize(
    ("lines", "heading", "said"),
    [
        (["a,t,0,good"], HEADING, naming("runs.csv, line 2", "score", "'good'")),
        (["a,t,0,.5", "a,t,0,.6"], HEADING, naming("line 3", "seed 0", "line 2", "lr")),
        (["a,t,x,.5"], HEADING, naming("line 2", "seed", "'x'")),
        (["a,t,,.5"], HEADING, naming("line 2", "seed is empty")),
        (["a,t,0,.5", "a,t,1,-.5"], HEADING, naming("line 3", "-0.5", "--metric")),
        (["a,t,0,101"], HEADING, naming("line 2", "101")),
        (["a,t,0"], HEADING, naming("line 2", "4 fields")),
        ([",t,0,.5"], HEADING, naming("line 2", "method is empty")),
        (["a,t,0,.5,0"], HEADING + ",lr", naming("line 2", "lr", "not from 1e-12")),
        (["a,t,0,.5,1e-99"], HEADING + ",lr", naming("line 2", "lr", "1e-99")),
        (["a,t,0,.5,-3"], HEADING + ",parameters", naming("line 2", "parameters", "whole number")),
        (["a,t,0,.5,.5"], HEADING + ",score", naming("runs.csv, line 1", "'score' occurs twice")),
        (["a" * 201 + ",t,0,.5"], HEADING, naming("line 2", "method", "201 characters")),
        ([f"{n},t,0,.5" for n in range(1001)], HEADING, naming("1,001 methods")),
        (["a,t"], "algorithm,task", naming("no column 'method'", "--method", "algorithm, task")),
        ([], HEADING, naming("no line")),
    ],
)
def test_a_bad_table_is_refused_with_its_line(
    tmp_path: Path, lines: list[str], heading: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        load_results(table(tmp_path, lines, heading))


@pytest.mark.parametrize("value", [np.array([1, 2]), [1, 2], {}, "x"])
def test_values_that_are_no_numbers_are_refused(value: Any) -> None:
    frame = pd.DataFrame({"method": ["a", "b"], "score": [0.5, value]})
    with pytest.raises(UserError, match=r"row 1: score .* is no number"):
        load_results(frame)
    with pytest.raises(UserError, match="occurs twice"):
        load_results(pd.concat([frame, frame], axis=1))


def test_names_are_on_one_line_and_visible(tmp_path: Path) -> None:
    frame = pd.DataFrame({"method": ["a\nb", "\x1b[31mred", "nul\0"], "score": [0.5, 0.6, 0.7]})
    cells = load_results(frame).all_cells
    assert [cell.method for cell in cells] == ["a b", "\\u001b[31mred", "nul\\u0000"]


def test_parquet_keeps_the_columns_of_an_index(tmp_path: Path) -> None:
    frame = pd.read_csv(table(tmp_path, seeds(LoRA=[0.5, 0.6, 0.65], a=[0.7, 0.75, 0.9])))
    frame.set_index("seed").to_parquet(tmp_path / "runs.parquet")
    results = load_results(tmp_path / "runs.parquet")
    assert not any("No column of seeds" in note for note in results.notes)


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


def test_a_metric_of_which_less_is_better(tmp_path: Path) -> None:
    file = table(tmp_path, seeds(LoRA=[3.0, 3.1, 2.9], a=[1.0, 1.2, 1.1]))
    results = load_results(file, metric="rmse")
    assert difference(results)["difference"] == pytest.approx(1.9)
    with pytest.raises(UserError, match="perplexity"):
        load_results(file, metric="perplexity")


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
    for table in reordered:
        pd.testing.assert_frame_equal(first, table)


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


def test_one_sweep_without_seeds_is_no_mean_over_seeds() -> None:
    frame = tuned(np.random.default_rng(0), 1, 0.001, LoRA=-3, a=-3).drop(columns="seed")
    results = load_results(frame.assign(validation=frame["score"]))
    assert [cell.studies.points for cell in results.all_cells if cell.studies] == [9, 9]
    assert results.tables["scores"].set_index(["k", "method"])["score"][9, "a"] == pytest.approx(
        0.8, abs=0.01
    )
    assert pd.isna(difference(results, 9)["low"])


def test_runs_of_one_seed_in_several_studies_all_count(tmp_path: Path) -> None:
    lines = [f"{method},{study},0,.{5 + study}" for method in ("LoRA", "a") for study in range(3)]
    results = load_results(table(tmp_path, lines, "method,study,seed,score"))
    assert [cell.finished for cell in results.all_cells] == [3, 3]


# --- examples ---


def answered(folder: Path, rng: np.random.Generator, examples: int = 200) -> tuple[Path, Path]:
    """A table of two methods with four seeds, and a folder with the answers of their runs."""
    lines, answers = [], []
    hard = rng.normal(size=examples)
    for method, level in (("LoRA", 0.0), ("a", 0.3)):
        for seed in range(4):
            right = (rng.normal(size=examples) + level > hard).astype(int)
            lines.append(f"{method},t,{seed},{right.mean():.3f}")
            answers += [f"{method},t,{seed},e{number},{each}" for number, each in enumerate(right)]
    (folder / "answers").mkdir()
    file = table(folder, lines)
    table(folder / "answers", answers, "method,task,seed,example,score", "a.csv")
    return file, folder / "answers"


def test_scores_of_examples_enter_the_interval(tmp_path: Path) -> None:
    file, folder = answered(tmp_path, np.random.default_rng(0))
    alone, crossed = load_results(file), load_results(file, examples=str(folder))
    assert difference(crossed)["difference"] == pytest.approx(difference(alone)["difference"], abs=0.001)
    part = crossed.analysis.blocks[0].compared[0].differences[1].effect.parts[0]
    assert part.count == 200
    assert part.examples > 0
    assert len(crossed.predictions) == 8 * 200


def test_examples_whose_mean_is_not_the_score_are_not_used(tmp_path: Path) -> None:
    file, folder = answered(tmp_path, np.random.default_rng(0))
    frame = pd.read_csv(file)
    results = load_results(frame.assign(score=frame["score"] / 2), examples=str(folder))
    assert any("mean of the examples is not the score of row 0" in note for note in results.notes)
    assert results.analysis.blocks[0].compared[0].differences[1].effect.parts[0].count is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("b,t,0,e0,1", "no run has method b"),
        ("a,t,0,e0,1", "example 'e0' of this run occurs twice"),
        ("a,t,0,new,7", "not from 0 to 1"),
    ],
)
def test_examples_that_fit_no_run_are_refused(tmp_path: Path, line: str, said: str) -> None:
    file, folder = answered(tmp_path, np.random.default_rng(0))
    with (folder / "a.csv").open("a", encoding="utf-8") as answers:
        answers.write(line + "\n")
    with pytest.raises(UserError, match=rf"a\.csv, line 1602: .*{said}"):
        load_results(file, examples=str(folder))


# --- tuning ---


def tuned(rng: np.random.Generator, runs: int = 3, noise: float = 0.01, **peaks: float) -> pd.DataFrame:
    """Runs of methods at nine rates. The score falls from .8 at the method's best rate, a power of ten."""
    lines = [
        (method, rate, run, 0.8 - 0.05 * (np.log10(rate) - peak) ** 2 + rng.normal(0, noise))
        for method, peak in peaks.items()
        for rate in np.logspace(-5, -1, 9)
        for run in range(runs)
    ]
    return pd.DataFrame(lines, columns=["method", "lr", "seed", "score"])


def test_rates_and_validation_give_the_score_after_k_trials() -> None:
    rng = np.random.default_rng(0)
    frame = tuned(rng, LoRA=-3, a=-2)
    frame["validation"] = 0.8 - 0.05 * (np.log10(frame["lr"]) + 3) ** 2
    results = load_results(frame)
    block = results.analysis.blocks[0]
    assert (block.k, block.ks) == (9, (1, 2, 4, 8, 9))
    # The validation score prefers a rate that is a decade from a's best.
    assert difference(results, 9)["difference"] == pytest.approx(-0.05, abs=0.02)
    by_loss = frame.drop(columns="validation").assign(loss=1 - frame["validation"])
    other = load_results(by_loss, validation_loss="loss")
    assert difference(other, 9)["difference"] == pytest.approx(difference(results, 9)["difference"])


def test_without_validation_a_run_is_scored_at_the_rate_that_the_others_choose() -> None:
    rng = np.random.default_rng(1)
    best, crossed = [], []
    for _ in range(40):
        frame = tuned(rng, noise=0.02, LoRA=-3).assign(score=lambda f: 0.7 + rng.normal(0, 0.02, len(f)))
        results = load_results(frame)
        best.append(frame.groupby("lr")["score"].mean().max())
        score = results.tables["scores"].set_index("k").loc[9, "score"]
        # By hand: the rate that is best by the other runs.
        by_run = frame.pivot_table(index="lr", columns="seed", values="score")
        scores = [by_run[run][by_run.drop(columns=run).mean(axis=1).idxmax()] for run in by_run]
        assert score == pytest.approx(np.mean(scores))
        crossed.append(score)
    # All rates are equally good: the best mean is too high, and the score of runs left out is not.
    assert np.mean(best) > 0.712
    assert np.mean(crossed) == pytest.approx(0.7, abs=0.006)


def test_the_error_of_runs_that_choose_for_one_another_is_no_smaller_than_repetitions_show() -> None:
    rng = np.random.default_rng(3)

    def crossed() -> CompleteStudies:
        scores = 0.5 + 0.003 * rng.normal(size=(3, 13))
        others = (scores.sum(0) - scores) / 2
        return CompleteStudies(losses=1 - others, scores=scores, crossed=True)

    differences = [of_pair(crossed(), crossed(), 13) for _ in range(200)]
    assert np.var([each.difference for each in differences]) < 1.2 * np.mean([e.seeds for e in differences])


def test_rates_of_their_own_without_validation_leave_nothing_to_choose_by() -> None:
    frame = tuned(np.random.default_rng(2), LoRA=-3, a=-3)
    frame["lr"] *= 1 + frame["seed"] / 10
    results = load_results(frame)
    assert results.answer == "No study is complete."
    assert any("without a validation loss" in note for note in results.analysis.notes)
    assert any("`validation`" in note for note in results.notes)


def test_methods_with_grids_of_their_own_are_shown_apart(tmp_path: Path) -> None:
    frame = tuned(np.random.default_rng(4), LoRA=-3, a=-3)
    results = load_results(frame[(frame["method"] == "LoRA") | (frame["lr"] > 5e-4)])
    assert sorted(block.k for block in results.analysis.blocks) == [5, 9]
    # Rates that hardly differ are a window, too.
    assert load_results(frame.assign(lr=1e-3 * (1 + frame["lr"] / 1e3))).analysis.blocks[0].k == 9
    # A method with a much wider range stands apart, and the others are still compared.
    three = tuned(np.random.default_rng(4), LoRA=-3, a=-3, wide=-3)
    three["lr"] = three["lr"].where(three["method"] != "wide", three["lr"] ** 2 * 1e3)
    blocks = load_results(three).analysis.blocks
    names = sorted(sorted(entrant.method for entrant in block.entrants) for block in blocks)
    assert names == [["LoRA", "a"], ["wide"]]
    # On another task both have fewer rates: k is what both tasks have.
    few = frame[frame["lr"] > 5e-4].assign(task="few")
    (block,) = load_results(pd.concat([frame.assign(task="all"), few])).analysis.blocks
    assert block.k == 5
    assert len(block.compared) == 1


def test_a_run_that_diverged_at_a_rate_of_the_others_counts_as_failed() -> None:
    frame = tuned(np.random.default_rng(5), LoRA=-3, a=-3)
    frame["score"] = frame["score"].mask(
        (frame["method"] == "a") & (frame["seed"] == 1) & (frame["lr"] > 0.05)
    )
    # No score is ten points below the best, as those of most failed trials are.
    frame["score"] = frame["score"].clip(lower=0.75)
    results = load_results(frame)
    of_a = next(e for e in results.analysis.blocks[0].entrants if e.method == "a")
    assert of_a.sensitivity is not None
    assert of_a.sensitivity.failures == 1
    assert any("worst score" in note for note in results.notes)


def test_all_methods_choose_by_the_same() -> None:
    frame = tuned(np.random.default_rng(6), LoRA=-3, a=-3).assign(validation=0.5)
    frame["validation"] = frame["validation"].where(frame["method"] == "LoRA")
    results = load_results(frame)
    assert results.analysis.blocks == ()
    assert any("a on all" in note and "validation loss" in note for note in results.analysis.notes)


def test_a_rate_that_some_runs_lack_is_refused() -> None:
    frame = tuned(np.random.default_rng(7), LoRA=-3)
    with pytest.raises(UserError, match="row 4: lr is empty, and other runs of LoRA have one"):
        load_results(frame.assign(lr=frame["lr"].mask(frame.index == 4)))


@pytest.mark.parametrize("columns", [["method", "lr", "seed", "score"], None])
@pytest.mark.parametrize("metric", ["score", "rmse"])
def test_the_validation_loss_is_computed_as_the_page_says(metric: str, columns: list[str] | None) -> None:
    frame = tuned(np.random.default_rng(9), LoRA=-3, a=-3).assign(validation=lambda f: f["score"])
    results = load_results(frame[columns] if columns else frame, metric=metric)
    (note,) = (note for note in results.notes if "'Validation loss'" in note)
    trial = next(seed for seed in results.all_seeds if seed.method == "a" and seed.study == 1)
    same = frame[(frame["method"] == "a") & np.isclose(frame["lr"], trial.lr or 0)].set_index("seed")["score"]
    score = same.drop(index=1).mean() if columns else same[1]
    assert ("one minus" in note) == (metric == "score")
    assert trial.validation_loss == pytest.approx(1 - score if metric == "score" else score)


@pytest.mark.parametrize(
    ("decades", "compared"),
    # Each decades from -5 of the lowest and the highest rate that LoRA tries. `a` tries rates from -5 to -3.
    [((0, 0.6), False), ((0, 1.6), True), ((-2, 0), True), ((-0.9, 0.8), True)],
)
def test_a_method_that_improves_up_to_the_last_rate_that_it_tried_is_not_worse(
    decades: tuple[float, float], compared: bool
) -> None:
    rng, lines = np.random.default_rng(10), []
    for method, (low, high) in (("LoRA", decades), ("a", (0, 2))):
        for rate in np.logspace(low - 5, high - 5, 5):
            for seed in range(5):
                # The methods are equally good at the same rate.
                score = 0.9 - 0.03 * (np.log10(rate) + 3) ** 2 + rng.normal(0, 0.002)
                lines.append((method, rate, seed, score, score))
    frame = pd.DataFrame(lines, columns=["method", "lr", "seed", "score", "validation"])
    results = load_results(frame)
    assert "The best rates of LoRA lie at the upper edge of its window" in results.answer
    assert "a is significantly better" not in results.answer
    entrants = [entrant for block in results.analysis.blocks for entrant in block.compared]
    assert [entrant.method for entrant in entrants] == ["a"] * compared
    assert any("unequal widths on all" in note for note in results.notes) == (not compared)


def test_methods_with_rates_drawn_at_random_are_compared() -> None:
    rng = np.random.default_rng(11)
    frame = tuned(rng, LoRA=-3, a=-3).assign(validation=lambda f: f["score"])
    frame["lr"] *= 10 ** rng.uniform(-0.25, 0.25, len(frame))
    (block,) = load_results(frame).analysis.blocks
    assert [entrant.method for entrant in block.compared] == ["a"]


def test_no_recipe_is_written_of_results_of_others() -> None:
    frame = tuned(np.random.default_rng(8), LoRA=-3, a=-3).assign(validation=lambda f: f["score"])
    with pytest.raises(UserError, match="do not say how to train"):
        choose(load_results(frame).analysis)


# --- files of other programs ---


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


RUNS = [f"{method},{task},{seed},{7 + seed}.5" for method in "AB" for task in "xy" for seed in range(3)]


@pytest.mark.parametrize("heading", ["Method,TASK, Seed ,Score", " method, task, seed, score"])
def test_columns_may_have_capitals_and_blanks(tmp_path: Path, heading: str) -> None:
    cells = load_results(table(tmp_path, RUNS, heading)).all_cells
    assert sorted((cell.method, cell.task, cell.finished) for cell in cells) == [
        (method, task, 3) for method in "AB" for task in "xy"
    ]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=naming("'task'", "Task", "TASK")):
        load_results(table(tmp_path, RUNS, "method,Task,TASK,score"))


@pytest.mark.parametrize("column", ["dataset", "model", "run"])
def test_runs_that_differ_in_an_unused_column_are_not_pooled(tmp_path: Path, column: str) -> None:
    lines = [line.rpartition(",")[0].rpartition(",")[0] + ",8.5" for line in RUNS]
    with pytest.raises(UserError, match=naming(column, "--task")):
        load_results(table(tmp_path, lines, f"method,{column},score"))


@pytest.mark.parametrize("column", ["epochs", "state", "converged", "size"])
def test_columns_that_tell_how_runs_went_are_no_seeds(tmp_path: Path, column: str) -> None:
    kinds = {"epochs": "345334543354", "state": "aaabaaaabaaa", "converged": "110111101111", "size": "1" * 12}
    lines = [
        f"{line.rpartition(',')[0].rpartition(',')[0]},{kind},{number}.5"
        for number, (line, kind) in enumerate(zip(RUNS, kinds[column], strict=True), 2)
    ]
    assert load_results(table(tmp_path, lines, f"method,task,{column},score")).all_cells


def test_each_task_may_have_its_metric(tmp_path: Path) -> None:
    lines = [f"{line},{'f1' if ',x,' in line else ''}" for line in RUNS]
    assert load_results(table(tmp_path, lines, f"{HEADING},metric")).all_cells
    lines = [f"{line},{'rmse' if ',x,' in line else 'accuracy'}" for line in RUNS]
    with pytest.raises(UserError, match=naming("rmse", "--metric")):
        load_results(table(tmp_path, lines, f"{HEADING},metric"))


def test_other_columns_are_noted(tmp_path: Path) -> None:
    lines = [f"{line},{number}.5,ok" for number, line in enumerate(RUNS)]
    results = load_results(table(tmp_path, lines, f"{HEADING},wall,state"))
    assert "Columns not used: wall, state." in results.notes


@pytest.mark.parametrize("score", ["loss", "val_error", "RMSE"])
def test_scores_of_which_less_is_better_need_their_metric(tmp_path: Path, score: str) -> None:
    file = table(tmp_path, RUNS, f"method,task,seed,{score}")
    with pytest.raises(UserError, match=naming(score, "--metric")):
        load_results(file, score=score)
    with pytest.raises(UserError, match=naming(score, "--metric")):
        load_results(file, score=score, metric="matthews")
    for metric in ("rmse", "score"):
        assert load_results(file, score=score, metric=metric).all_cells


def test_several_metrics_of_one_task_are_refused(tmp_path: Path) -> None:
    lines = [f"{line},{metric}" for line in RUNS for metric in ("accuracy", "f1")]
    with pytest.raises(UserError, match=naming("accuracy", "f1")):
        load_results(table(tmp_path, lines, f"{HEADING},metric"))


def test_shares_and_percentages_of_one_task_are_refused(tmp_path: Path) -> None:
    lines = [line.replace(",7.5", ",0.075").replace(",8.5", ",.085") if line < "B" else line for line in RUNS]
    lines = [line.replace(",9.5", ",.095") if line < "B" else line for line in lines]
    with pytest.raises(UserError, match=naming("line 2", "0.075", "9.5")):
        load_results(table(tmp_path, lines))


def test_a_method_without_a_seed_of_the_reference_stays_in_the_answer(tmp_path: Path) -> None:
    lines = [line.replace(",x,", ",x,1") if line < "B" else line for line in RUNS if ",x," in line]
    lines += [line.replace("B", "LoRA") for line in RUNS if line > "B" and ",x," in line]
    for some in (lines, [line for line in lines if "B" not in line]):
        assert "no seed in common with LoRA: A." in load_results(table(tmp_path, some)).answer


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    options: Any = {"sead": "run"}
    with pytest.raises(UserError, match="did you mean 'seed'"):
        load_results(table(tmp_path, RUNS), **options)


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
    assert "without an interval: lily" in results.answer
    assert difference(results)["reference"] == "lora--llama-3.2-3B-rank32"


def test_tables_and_packs_are_read_as_one(tmp_path: Path) -> None:
    file = table(tmp_path, seeds(LoRA=[0.5, 0.51, 0.52]))
    more = table(tmp_path, seeds(a=[0.6, 0.61, 0.63]), name="more.csv")
    assert difference(load_results(file, more))["method"] == "a"
    (tmp_path / "again").mkdir()
    with pytest.raises(UserError, match="two of these are called"):
        load_results(file, shutil.copy(file, tmp_path / "again"))
    with pytest.raises(UserError, match="for tables"):
        load_results(DATA / "peft", score="score")
