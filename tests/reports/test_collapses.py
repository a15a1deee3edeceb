"""Tests collapsed runs and failed baselines: how they are reported, and which claims they prevent."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tensorbench.plan.rows import Plan
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Row
from tensorbench.reports import guards
from tensorbench.reports.analysis import Analysis, Block, analyse
from tensorbench.reports.blocks import Entrant
from tensorbench.reports.collapses import Collapses, collapses
from tensorbench.reports.inference.effects import Answer
from tensorbench.reports.reading import read
from tensorbench.reports.report import compose
from tensorbench.reports.results import Results
from tensorbench.reports.selection import Selection
from tensorbench.reports.tidy import tidy_tables

from ..fixtures import Call
from ..messages import naming
from ..stored import Result
from . import made_up_studies
from .browsing import page_of
from .made_up import SMALL, Analysed, Stored, answered, plan_of, printed, summary_of

FIVE: dict[str, Any] = SMALL | {"seeds": [0, 1, 2, 3, 4]}
WITH_HEAD: dict[str, Any] = FIVE | {"methods": ["head_only", *SMALL["methods"]]}
EXAMPLES = 1000
PLAN, WITHOUT_HEAD, TWO_TASKS = (
    plan_of(**changes) for changes in (WITH_HEAD, FIVE, WITH_HEAD | {"tasks": ["digits", "textile"]})
)

#: The number of correct answers by title, task and seed. Runs that are not named have about 900.
Right = Mapping[tuple[str, str, int], int]
ResultOf = Callable[[Trial, Row], Result]


def results_with(right: Right, diverged: Collection[tuple[str, str, int]] = ()) -> ResultOf:
    def of_trial(trial: Trial, row: Row) -> Result:
        key = (row.title, row.task, trial.seed)
        count = right.get(key, 900 + (trial.seed * 7 + len(row.title)) % 3)
        wrong = np.random.default_rng(trial.seed).permutation(EXAMPLES)[: EXAMPLES - count]
        failure = "diverged" if key in diverged else ""
        return answered(count, EXAMPLES, wrong.tolist(), failure=failure, validation=[count / EXAMPLES])

    return of_trial


def only_block(analysis: Analysis) -> Block:
    return next(block for block in analysis.blocks if block.title == "isorank 2")


def only(analysis: Analysis) -> Entrant:
    (entrant,) = only_block(analysis).compared
    return entrant


def of(results: Results) -> list[tuple[str, int, int]]:
    return [(side.cell.method, side.count, side.runs) for side in collapses(results).values()]


def every_seed(method: str, task: str = "digits") -> list[tuple[str, str, int]]:
    return [(method, task, seed) for seed in range(5)]


def head(right: int, *tasks: str) -> dict[tuple[str, str, int], int]:
    """The number of correct answers of the head alone, by default on digits."""
    return {key: right for task in tasks or ("digits",) for key in every_seed("head only", task)}


# --- what a collapse is ---

#: With 1,000 examples of two classes guessing reaches at most 53%, with two standard errors.
GUESSED, NEAR = {("LoRA", "digits", 1): 525}, [*every_seed("LoRA"), *every_seed("TensLoRA att")]


@pytest.mark.parametrize(
    ("right", "plan", "collapsed"),
    [
        # Measured by the head alone, or else by the method's median.
        (head(700) | {("LoRA", "digits", 1): 650}, PLAN, []),
        (head(700) | {("LoRA", "digits", 1): 590}, PLAN, [("LoRA", 1, 5)]),
        ({("LoRA", "digits", 1): 650}, WITHOUT_HEAD, [("LoRA", 1, 5)]),
        # Near guessing, unless all methods guess.
        (head(600) | GUESSED, PLAN, [("LoRA", 1, 5)]),
        (head(550) | dict.fromkeys(NEAR, 540) | GUESSED, PLAN, []),
    ],
)
def test_a_collapse_is_far_below_the_head_or_near_guessing(
    right: Right, plan: Plan, collapsed: list[tuple[str, int, int]], stored: Stored
) -> None:
    assert of(read(stored(results_with(right), plan), ["small"])) == collapsed


def test_constant_answers_are_collapses_where_they_score_zero(stored: Stored) -> None:
    def result(trial: Trial, row: Row) -> Result:
        kept = results_with({})(trial, row)
        if row.title != "LoRA" or trial.seed > 2:
            return replace(kept, score=0.8)
        return replace(kept, score=0.0, answers=np.zeros(EXAMPLES, int))

    of_matthews = plan_of(**FIVE | {"tasks": [{"task": "digits", "metric": "matthews"}]})
    assert of(read(stored(result, of_matthews), ["small"])) == [("LoRA", 3, 5)]


def test_the_report_says_first_at_the_terminal_which_baseline_failed(
    stored: Stored, call: Call, tmp_path: Path
) -> None:
    uri = stored(results_with({("LoRA", "digits", 1): 500}), TWO_TASKS)
    done = call("report", "small", "--store", uri, "--out", tmp_path / "out", "--format", "json", "--no-log")
    first, *_ = done.out.splitlines()
    assert first.startswith(only_block(analyse(read(uri, ["small"]))).guards[0])
    assert re.match(naming("LoRA (isorank 2)", "digits"), first)
    assert "1 of 5 runs collapsed" in first


def test_a_cell_whose_seeds_all_diverged_collapsed_entirely(analysed: Analysed, tmp_path: Path) -> None:
    analysis = analysed(results_with({}, diverged=every_seed("TensLoRA att")), PLAN)
    assert of(analysis.results) == [("TensLoRA att", 5, 5)]
    (side,) = analysis.collapses.values()
    assert side.chance == 1
    assert "with 5 seeds" in str(side)
    # It is compared with nothing, and named first all the same.
    assert not analysis.blocks
    assert analysis.faults == (str(side),)
    (line,) = tidy_tables(analysis)["collapses"].lines
    assert (line["method"], line["collapsed"], line["runs"]) == ("TensLoRA att", 5, 5)
    page = page_of(analysis, tmp_path).read_text()
    assert page.index("5 of 5 runs collapsed") < page.index("Too few seeds")


def test_runs_that_the_machine_lost_are_no_collapses(stored: Stored) -> None:
    def lost(trial: Trial, row: Row) -> Result:
        made = results_with({})(trial, row)
        failure = "out of memory" if row.title == "LoRA" else ""
        return replace(made, failure=failure)

    assert of(read(stored(lost, PLAN), ["small"])) == []


def test_a_store_in_which_every_run_diverged_has_collapsed_entirely(stored: Stored) -> None:
    methods = ("LoRA", "TensLoRA att")
    uri = stored(results_with({}, [key for method in methods for key in every_seed(method)]), WITHOUT_HEAD)
    failures = summary_of(uri).failures
    assert all(any(failure.startswith(method) for failure in failures) for method in methods)


# --- what is claimed ---


def test_without_collapses_equal_methods_are_equivalent(analysed: Analysed) -> None:
    analysis = analysed(results_with({}), PLAN)
    assert only(analysis).differences[1].verdict.answer is Answer.WITHIN
    assert only_block(analysis).collapsed == ()


@pytest.mark.parametrize("method", ["LoRA", "TensLoRA att"])
def test_a_collapse_of_either_side_keeps_equivalence_from_being_claimed(method: str, stored: Stored) -> None:
    # The threshold is wide enough to contain the interval.
    uri = stored(results_with(head(800) | {(method, "digits", 3): 600}), PLAN)
    analysis = analyse(read(uri, ["small"]), 0.5)
    (side,) = analysis.collapses.values()
    assert (side.cell.method, side.count, side.runs) == (method, 1, 5)
    found = only(analysis).differences[1]
    assert found.interval is not None
    assert max(map(abs, found.interval)) < 0.5
    assert found.verdict.answer is Answer.UNDECIDED


@pytest.mark.parametrize(("diverging", "side"), [("TensLoRA att", "better"), ("LoRA", "worse")])
def test_nothing_is_better_than_what_it_lost_by_diverging(
    diverging: str, side: str, analysed: Analysed
) -> None:
    other = {"better": 950, "worse": 850}[side]
    right = {("TensLoRA att", "digits", seed): other + seed % 2 for seed in range(5)} | head(700)
    whole, lost = (
        only(analysed(results_with(right, diverged), PLAN)).differences[1]
        for diverged in ((), {(diverging, "digits", 2)})
    )
    assert whole.verdict.side == side
    assert lost.interval is not None
    # What is left of it still seems so.
    assert max(lost.interval) * min(lost.interval) > 0
    assert (lost.verdict.answer, lost.verdict.side) == (Answer.UNDECIDED, "")
    assert f"seeds of {diverging} diverged" in lost.verdict.reason or "collapsed" in lost.verdict.reason


def test_the_bound_is_that_of_clopper_and_pearson(results: Results) -> None:
    side = Collapses(results.all_cells[0], 1, 13)
    assert stats.binom.cdf(1, 13, side.chance) == pytest.approx(0.05)
    assert "1 of 13 runs collapsed" in str(side)
    assert f"{100 * side.chance:.0f}%" in str(side)
    assert Collapses(results.all_cells[0], 5, 5).chance == 1


# --- a baseline that failed ---


def test_a_reference_below_the_head_alone_is_named_first(stored: Stored) -> None:
    right = {("LoRA", "textile", seed): 850 + seed for seed in range(5)}
    right |= {("TensLoRA att", "textile", seed): 951 + seed % 2 for seed in range(5)}
    uri = stored(results_with(right), TWO_TASKS)
    made = compose(read(uri, ["small"]), ["html", "md"])
    (failure,) = only_block(made.analysis).guards
    assert re.match(naming("LoRA (isorank 2)", "textile · tiny-random-vit"), failure)
    assert "(85.20 against " in failure
    page, text = (str(made.files[name]) for name in ("index.html", "tables/tables.md"))
    assert page.index(failure) < page.index("<table")
    assert text.index("not above the head alone") < text.index("| method |")
    assert printed(*summary_of(uri).tables("toy")).startswith(failure)


def test_a_reference_of_which_a_run_collapsed_has_failed_there(analysed: Analysed, tmp_path: Path) -> None:
    # LoRA's mean is above the head's although one of its runs collapsed.
    right = head(700, "textile") | {("LoRA", "textile", 2): 550}
    analysis = analysed(results_with(right), TWO_TASKS)
    failure, *_ = only_block(analysis).guards
    assert re.match(naming("LoRA (isorank 2)", "textile"), failure)
    assert "above" not in failure
    (side,) = analysis.collapses.values()
    assert side.counted in failure
    page = page_of(analysis, tmp_path).read_text()
    # In the answer and among its notes.
    assert page.count("1 of 5 runs collapsed") >= 2
    (line,) = tidy_tables(analysis)["collapses"].lines
    assert (line["method"], line["task"], line["collapsed"], line["runs"]) == ("LoRA", "textile", 1, 5)
    assert line["chance_at_most"] == side.chance


@pytest.mark.parametrize("reference", ["LoRA", "TensLoRA att"])
def test_a_reference_whose_seeds_all_diverged_has_failed_there(
    reference: str, stored: Stored, tmp_path: Path, call: Call
) -> None:
    lost = every_seed(reference, "textile")
    uri = stored(results_with(head(700, "digits", "textile"), lost), TWO_TASKS)
    named = Selection() if reference == "LoRA" else Selection(reference=reference)
    analysis = analyse(read(uri, ["small"], named))
    failure, *_ = analysis.faults
    assert re.match(naming(f"{reference} (isorank 2)", "textile · tiny-random-vit", 5, 5), failure)
    # It scores nothing, so nothing measures its failed runs, and nothing is below a head.
    assert guards.OF_FAILED_RUNS not in failure
    assert guards.OF_NO_BETTER not in failure
    chosen = [] if reference == "LoRA" else ["--reference", reference]
    out = str(tmp_path / "out")
    done = call("report", "small", "--store", uri, "--out", out, "--format", "md", "--no-log", *chosen)
    assert failure in done.out.splitlines()
    assert failure.split(";")[0] in (tmp_path / "out" / "tables" / "tables.md").read_text()
    assert (failure in summary_of(uri).failures) == (reference == "LoRA")


def test_a_reference_that_is_above_the_heads_has_not_failed(analysed: Analysed) -> None:
    analysis = analysed(results_with(head(700, "digits", "textile")), TWO_TASKS)
    assert (only_block(analysis).guards, analysis.faults) == ((), ())


def test_collapses_of_tuned_errors_do_not_depend_on_their_unit() -> None:
    noise = np.random.default_rng(0)
    lines = [
        {"method": method, "task": "ratings", "seed": seed, "lr": lr, "score": error, "validation": error}
        for seed in range(4)
        for method, least in (("LoRA", 1.0), ("X", 0.88), ("Y", 1.5))
        for lr in (1e-5, 1e-4, 1e-3)
        for error in [least + 0.05 * (np.log10(lr) + 4) ** 2 + noise.normal(0, 0.01)]
    ]
    by_unit = []
    for unit in (1.0, 100.0):
        table = pd.DataFrame(lines)
        table[["score", "validation"]] *= unit
        analysis = analyse(read("", [table], None, {"metric": "rmse"}))
        collapsed = {each.cell.method for each in analysis.collapses.values()}
        (block,) = analysis.blocks
        by_unit.append((collapsed, {e.method: e.differences[block.k].verdict for e in block.compared}))
    assert by_unit[0] == by_unit[1]
    # The trials that one method keeps are close to each other.
    assert not by_unit[0][0]


def test_one_study_is_counted_in_the_singular(analysis: Analysis) -> None:
    (plan, *_) = (
        row.studies
        for row in made_up_studies.plan_of(**made_up_studies.ONE_TASK).stored().rows
        if row.studies
    )
    cell = replace(analysis.results.all_cells[0], studies=plan)
    assert "1 of 1 kept trial collapsed; with 1 study the" in Collapses(cell, 1, 1).counted
    assert "1 of 2 kept trials collapsed; with 2 studies the" in Collapses(cell, 1, 2).counted
