"""Tests the leaderboard answers that docs/findings.py writes, on made-up results."""

from __future__ import annotations

import shlex
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from reports.ablation import Scored, StoredAblation
from reports.inference.crossed import of_seeds
from reports.inference.effects import Answer, Verdict, effect
from reports.inference.intervals import simultaneous

from .made_up import BASE, BUDGET, Call, rich_of

ROOT = Path(__file__).parents[2]


def question(script: Any, letter: str, budget: str, compared: dict[str, tuple[str, ...]]) -> Any:
    return script("answers.questions").Question(letter, budget, compared, tuple(BASE))


def rows(text: str) -> list[list[str]]:
    """The lines of the table without its heading."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return lines[2:]


def test_an_answer_is_what_its_command_reports(
    script: Any, checkout: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_question = question(
        script, "a", BUDGET, {"LoRA": ("TensLoRA att", "TensLoRA qkv"), "head only": ("TensLoRA att",)}
    )
    answer = script("answers.pairs").of_pairs(rich_of(script, checkout), asked_question)
    text, command = answer.text, answer.command
    assert answer.state == "all there"
    assert "--task" not in command
    monkeypatch.chdir(checkout)
    # The command already has an --out. Of two, the program takes the later one.
    words = [*shlex.split(command.replace("\\\n", ""))[1:], "--out", tmp_path / "out", "--format", "csv"]
    assert call(*words).code == 0
    points = script("answers.packed").points
    stored = pd.read_csv(tmp_path / "out/tables/comparisons.csv")
    expected = {
        (comparison.method, comparison.reference): [
            points(comparison.difference),
            f"{points(comparison.low)} to {points(comparison.high)}",
        ]
        for comparison in stored.itertuples()
    }
    (figure,) = answer.pictures
    bounds = script("answers.packed").bounds
    drawn = {(row.method, row.other): [points(row.difference), bounds(row.interval)] for row in figure.rows}
    assert drawn == expected
    assert len(expected) == 3
    assert set(stored["level"]) == {0.975}
    assert "each reference's at 97.5%" in text
    # TensLoRA att exceeds LoRA by 4 points on each task, and qkv is half a point below LoRA.
    assert "TensLoRA att beats LoRA: **yes, by what matters**." in answer.short
    assert "TensLoRA qkv beats LoRA: **no**." in answer.short

    # The short form names qkv's verdict alone: its interval is within a point and contains zero.
    numbers = "; ".join(
        f"{method} from {other} [{mean}](evidence.md#a) ({interval}), better by more than the threshold"
        for (method, other), (mean, interval) in drawn.items()
        if method == "TensLoRA att"
    )
    counted = "1 of 3 comparisons practically equivalent"
    assert answer.short.endswith(f"**yes, by what matters**. {numbers}; {counted}.")


def test_intervals_are_simultaneous_with_those_of_other_sections(script: Any, checkout: Path) -> None:
    asked_question = replace(question(script, "f", BUDGET, {"LoRA": ("TensLoRA att",)}), beside=4)
    ((line,), _) = script("answers.pairs").compared(
        rich_of(script, checkout), asked_question, asked_question.tasks
    )
    assert line.mean.interval == pytest.approx(line.mean.effect.interval(0.95**0.2))
    answer = script("answers.pairs").of_pairs(rich_of(script, checkout), asked_question)
    assert "with the 4 comparisons below, which" in answer.text


def test_the_short_form_gives_numbers_of_significant_differences_and_counts_the_rest(script: Any) -> None:
    module = script("answers.answer")
    open_outcome, other, more = (
        module.Outcome(f"{name} from LoRA", "+1.00", "−1.00 to +3.00", verdict, verdict != "undecided")
        for name, verdict in (
            ("A", "undecided"),
            ("B", "significantly better; may be under the threshold"),
            ("C", "undecided"),
        )
    )
    sentences = [f"{name} from LoRA [+1.00](evidence.md#a) (−1.00 to +3.00)" for name in "AB"]
    assert (
        module.shortly("a", [open_outcome, other, more])
        == f"{sentences[1]}, significantly better; may be under the threshold; 2 of 3 comparisons undecided."
    )
    assert (
        module.shortly("a", [open_outcome, other])
        == f"{sentences[0]}, undecided; {sentences[1]}, significantly better; may be under the threshold."
    )


def test_incomplete_results_have_no_answer(script: Any, checkout: Path, tmp_path: Path) -> None:
    # LoTR lacks a seed of movie-sentiment.
    asked_question = question(script, "a", "isorank 2", {"LoRA": ("LoTR",)})
    answer = script("answers.pairs").of_pairs(rich_of(script, checkout), asked_question)
    answer_text = answer.text
    assert answer.state == "so far on 2 of 3 tasks: 29 of 30 trials"
    assert answer_text.startswith("**So far, on 2 of 3 tasks** (digits, textile): no answer yet")
    assert "Missing: LoTR on movie-sentiment." in answer_text
    assert "beats" not in answer_text
    assert answer.short == ""
    assert "--task digits,textile \\\n    --pair 'LoTR : LoRA'" in answer.command
    (row,) = answer.pictures[0].rows
    assert list(row.on_tasks) == ["digits", "textile"]
    assert row.difference == pytest.approx(sum(row.on_tasks.values()) / 2)

    nothing = script("answers.packed").Packed("rich", tmp_path)
    answer = script("answers.pairs").of_pairs(nothing, asked_question)
    assert answer.state == "not run yet: 0 of 30 trials"
    assert answer.text == "**Not run yet**: 0 of 30 trials are there. Missing: every row on all 3 tasks."


def lines(script: Any, sides: dict[tuple[str, str], str]) -> list[Any]:
    """Comparisons of these pairs of methods, with no content but the side of their verdict."""
    line = script("answers.pairs").Line
    return [
        line(*pair, SimpleNamespace(verdict=Verdict(Answer.UNDECIDED, side)), {})
        for pair, side in sides.items()
    ]


def test_a_difference_only_from_lora_on_other_sites_points_to_the_sites(script: Any) -> None:
    compared_lines = lines(
        script,
        {
            ("LoRTA", "LoRA (targets=qkvo) r=3"): "",
            ("LoRTA", "LoRA"): "better",
            ("CaRA", "LoRA (targets=qkvo+mlp) r=1"): "worse",
            ("CaRA", "LoRA"): "better",
            ("FacT-TT", "LoRA (targets=qkvo+mlp) r=1"): "",
            ("FacT-TT", "LoRA"): "",
        },
    )
    sentences = list(script("answers.pairs").ANSWERS["d"](None, None, compared_lines))
    assert sentences == ["LoRTA: **the sites**.", "CaRA: **the tensor**.", "FacT-TT: **undecided**."]


def test_a_worse_interleaved_variant_points_to_the_interleaving(script: Any) -> None:
    pairs = script("answers.questions").COMPARED[1].pairs
    worse = ("TensLoRA att_qkv (heads=interleaved)", "TensLoRA att_qkv")
    assert worse in pairs
    compared_lines = lines(script, {pair: "worse" if pair == worse else "" for pair in pairs})
    real, mixed, was = script("answers.pairs").ANSWERS["b"](None, None, compared_lines)
    assert "worse" not in real + mixed
    assert was == "It was the interleaving for: **TensLoRA att_qkv**."


def test_parameter_counts_explain_scores_if_both_rank_alike(
    script: Any, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, number = script("answers.pairs"), script("answers.packed").number
    asked_question = question(
        script, "c", BUDGET, {"LoRA": ("TensLoRA att", "TensLoRA qkv", "TensLoRA depth")}
    )
    results = rich_of(script, checkout)
    cells = results.study.cells.query("budget == @BUDGET")

    def rho(tasks: tuple[str, ...]) -> float:
        means = cells.query("task in @tasks").groupby("method")[["parameters", "mean"]].mean()
        return float(means.loc[[method for method, _ in asked_question.pairs]].corr("spearman").iloc[0, 1])

    text = pairs.of_pairs(results, asked_question).short
    assert f"is {number(rho(asked_question.tasks))} among the 3 rows" in text
    assert f"**{'yes' if rho(asked_question.tasks) >= 0.8 else 'no'}**" in text
    assert "it is" not in text

    monkeypatch.setattr(pairs, "IMAGES", "textile")
    digits, textile = (number(rho((task,))) for task in ("digits", "textile"))
    assert f"it is {digits}, and on textile {textile}." in pairs.of_pairs(results, asked_question).short


def test_two_rankings_of_the_same_rows_agree(
    script: Any, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning: ModuleType = script("answers.tuning")
    names = ("LoRA", "TensLoRA att", "TensLoRA qkv", "head only", "LoTR")
    for name, value in {"ROWS": names, "BUDGET": BUDGET, "TWO_TASKS": ("digits", "textile")}.items():
        monkeypatch.setattr(tuning, name, value)
    results = rich_of(script, checkout)
    answer = tuning.of_tuning(results, results)
    assert answer.state == "all there"
    assert answer.text.count("**1.00**") == 3
    assert answer.short.count("**1.00**") == 3
    assert "**TensLoRA att** has the best mean at LoRA's budget; " in answer.text
    by_row = [
        [results.gains(results.cells(task, BUDGET)[name]) for task in ("digits", "textile")] for name in names
    ]
    scores = pd.DataFrame([sum(map(pd.Series, on)) for on in by_row])
    halves = [(list(two), [seed for seed in scores if seed not in two]) for two in combinations(scores, 2)]
    means = [[scores[half].mean(axis=1) for half in both] for both in halves]
    itself = sum(ranking.corr(other, "kendall") for ranking, other in means) / 10
    assert f"not asked before): {itself:.2f} tuned, {itself:.2f} untuned." in answer.text

    other = rich_of(script, checkout)
    lower = [0.03, 0.02, 0.025, 0.01, 0.04]
    other.gains = lambda cell: {seed: gain - lower[seed] for seed, gain in results.gains(cell).items()}
    cells = results.cells
    other.cells = lambda task, budget: {
        name: replace(cell, mean=1 - (cell.mean or 0.0)) for name, cell in cells(task, budget).items()
    }
    answer = tuning.of_tuning(results, other)
    assert answer.text.count("**−1.00**") == 3
    contrast = effect([of_seeds(np.array(lower))] * 2)
    (figure,) = answer.pictures
    assert sorted(row.method for row in figure.rows) == sorted(names)
    for row in figure.rows:
        assert [row.difference, *row.on_tasks.values()] == pytest.approx([0.025] * 3)
        assert row.interval == pytest.approx(contrast.interval(simultaneous(len(names))))

    other.gains = lambda cell: {} if cell.method == "LoTR" else results.gains(cell)
    answer = tuning.of_tuning(results, other)
    assert "left out: LoTR." in answer.text
    assert f"not asked before): {itself:.2f} tuned." in answer.text
    answer = tuning.of_tuning(results, script("answers.packed").Packed("other", checkout))
    assert (answer.state, answer.short) == ("unfinished: 50 of 100 trials", "")


def test_the_choice_of_a_search_is_compared_with_the_heuristic(
    script: Any, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks, results = script("answers.ranks"), rich_of(script, checkout)
    study = results.study
    att, lora = (
        next(
            cell
            for cell in study.all_cells
            if (cell.method, cell.task, cell.budget) == (name, "digits", BUDGET)
        )
        for name in ("TensLoRA att", "LoRA")
    )
    final = [
        Scored(label, size, 100, cell.mean, cell.sd, [seed.run_id for seed in study.of_cell(cell.number)])
        for label, cell, size in (("best", att, [4, 2]), ("heuristic", lora, [3, 3]))
    ]
    search = StoredAblation("search", "s", "r", "tenslora", "digits", "vit", BUDGET, ["a", "b"], final=final)
    same = replace(search, kind="allocation", final=[replace(final[1], label="best"), final[1]])
    partly = replace(search, final=[replace(final[0], state="4 of 5 finished"), final[1]])
    monkeypatch.setattr(ranks.ablation, "read", lambda study: [search, same, partly])
    answer = ranks.of_ranks(results, [])
    assert answer.state == "not run yet: 0 of 40 trials; 2 of 4 searches and allocations"
    best, same_ranks = rows(answer.text)
    _, (own, other) = study.gains([att.number, lora.number])
    low, high = ttest_rel(own, other).confidence_interval(0.95**0.2)
    points = script("answers.packed").points
    assert best[1:4] == ["search: best (5 seeds)", "4, 2", "100"]
    expected = [points(float((own - other).mean())), f"{points(low)} to {points(high)}"]
    assert best[5:] == [*expected, "better by more than the threshold"]
    assert same_ranks[5:] == ["–", "–", "the same ranks"]
    assert f"search, digits from the heuristic {expected[0]} ({expected[1]})" in answer.pictures[-1].svg()
    assert answer.short == ""

    monkeypatch.setattr(ranks, "STUDIES", 2)
    during = replace(answer, short="No cut is told apart.")
    monkeypatch.setattr(ranks, "of_pairs", lambda packed, question: during)
    short = ranks.of_ranks(results, []).short
    by = "Searches and allocations, from the heuristic's ranks:"
    assert short.startswith(f"No cut is told apart. {by} search, digits [{expected[0]}](evidence.md#f) (")


def test_a_figure_holds_each_difference(script: Any, checkout: Path) -> None:
    asked_question = question(script, "a", BUDGET, {"LoRA": ("TensLoRA att", "TensLoRA qkv")})
    answer = script("answers.pairs").of_pairs(rich_of(script, checkout), asked_question)
    (figure,) = answer.pictures
    drawn = figure.svg()
    points, bounds = script("answers.packed").points, script("answers.packed").bounds
    for row in figure.rows:
        tasks = "".join(f", {task} {points(value)}" for task, value in row.on_tasks.items())
        difference = f"{points(row.difference)} ({bounds(row.interval)}{tasks})"
        assert f"{row.method} from {row.other} {difference}" in drawn
    # The figure has a label for each task and for the mean.
    assert all(f">{label}</text>" in drawn for label in (*BASE, "mean"))
    assert figure.shown in answer.text


def test_spectra_of_one_method_and_task_are_summarised_together(
    script: Any, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spectra, results = script("answers.spectra"), rich_of(script, checkout)
    sizes = dict(zip(spectra.MODES, (8, 4, 2, 3, 2), strict=True))
    adapters = [
        StoredAblation(
            *("redundancy", "s", "r", "LoRA", task, "vit", BUDGET, list(sizes)),
            spectra={mode: [2.0**-place for place in range(size)] for mode, size in sizes.items()},
            effective_ranks=dict.fromkeys(sizes, effective),
        )
        for task, effective in (("digits", 1.0), ("digits", 2.0), ("textile", 1.25))
    ]
    monkeypatch.setattr(spectra.ablation, "read", lambda study: adapters)
    answer = script("answers.ranks").of_ranks(results, [])
    drawn = answer.pictures[-1].svg()
    assert all(
        f">{label}</text>" in drawn for label in ("LoRA, digits (rich)", "LoRA, textile (rich)", "head size")
    )
    same = "head size 1.5 of 4, head 1.5 of 2, projection 1.5 of 3, layer 1.5 of 2"
    assert f"LoRA, digits (rich): input 1.5 of 8, {same}" in drawn
    assert "LoRA, textile (rich): input 1.2 of 8" in drawn
    assert answer.pictures[-1].shown in answer.text


def test_a_row_that_failed_is_among_what_is_said_of_forgetting(script: Any) -> None:
    packed = script("answers.packed").Packed("smollm2", ROOT / "results")
    complete = script("answers.forgetting").of_forgetting(packed)
    cells, seeds = packed.study.cells.copy(), packed.study.seeds.copy()
    cells.loc[cells["method"] == "FacT-TT", ["forgetting", "mean"]] = np.nan
    seeds.loc[seeds["method"] == "FacT-TT", ["forgetting", "score"]] = np.nan
    seeds.loc[seeds["method"] == "FacT-TT", ["status", "failure"]] = ["FAILED", "diverged"]
    packed.study = replace(packed.study, cells=cells, seeds=seeds)
    answer = script("answers.forgetting").of_forgetting(packed)
    assert answer.state == complete.state == "forgetting: all there"
    assert "Failed or diverged: FacT-TT on movie-sentiment, seeds 0, 1, 2 (diverged)." in answer.text
    *finished, lost = rows(answer.text)
    assert lost[0] == "FacT-TT"
    assert lost[2:] == ["–", "–", "–"]
    assert "FacT-TT" not in answer.short
    assert answer.short.endswith("2 of 4 comparisons undecided.")
    assert "; LoRTA from LoRA [−0.023](evidence.md#h) (−0.036 to −0.010), less; " in complete.short
    # The remaining claims are simultaneous with those of the failed method.
    assert finished == [row for row in rows(complete.text) if row[0] != "FacT-TT"]
