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
from tensorbench.records.predictions import Predictions
from tensorbench.records.stored_plan import Row
from tensorbench.reports import guards
from tensorbench.reports.analysis import Analysis, Block, analyse
from tensorbench.reports.answers import answers
from tensorbench.reports.blocks import Entrant
from tensorbench.reports.collapses import CollapseRates, Collapses, collapses, rates_of
from tensorbench.reports.evidence import gather, is_constant
from tensorbench.reports.inference.effects import Word
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
    by_trial, _ = gather(results, results.all_cells)
    sides = collapses(results, by_trial).values()
    return [(side.cell.method, side.count, side.runs) for side in sides if side.count]


def fallen(analysis: Analysis) -> list[Collapses]:
    return [side for side in analysis.collapses.values() if side.count]


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


@pytest.mark.parametrize(("constant", "collapsed"), [(True, [("LoRA", 2, 5)]), (False, [])])
def test_a_constant_answer_is_a_collapse_however_near_to_trained_scores(
    constant: bool, collapsed: list[tuple[str, int, int]], stored: Stored
) -> None:
    """As on MRPC: the larger class has two thirds of the examples, and trained runs score little more."""
    labels = (np.arange(EXAMPLES) % 3 > 0).astype(int)

    def result(trial: Trial, row: Row) -> Result:
        answers = np.ones(EXAMPLES, int)
        if row.title != "LoRA" or trial.seed > 1:
            answers = np.where(np.arange(EXAMPLES) < 40 + trial.seed, labels, 1)
        elif not constant:
            answers[0] = 0
        return Result(score=float((answers == labels).mean()), labels=labels, answers=answers)

    assert of(read(stored(result, WITHOUT_HEAD), ["small"])) == collapsed


def test_where_all_runs_answer_alike_nothing_trained(analysed: Analysed) -> None:
    def result(trial: Trial, row: Row) -> Result:
        made = results_with({})(trial, row)
        return replace(made, score=0.5, answers=np.zeros(EXAMPLES, int))

    analysis = analysed(result, WITHOUT_HEAD)
    assert not fallen(analysis)
    assert only_block(analysis).guards[0].startswith("Nothing trained on digits")


def test_a_head_alone_may_answer_alike_everywhere(stored: Stored) -> None:
    def result(trial: Trial, row: Row) -> Result:
        made = results_with({})(trial, row)
        return replace(made, score=0.5, answers=np.zeros(EXAMPLES, int)) if row.title == "head only" else made

    assert of(read(stored(result, PLAN), ["small"])) == []


@pytest.mark.parametrize(
    ("labels", "answers", "constant"),
    [
        ([0, 1, 1], [1, 1, 1], True),
        ([0, 1, 1], [1, 1, 0], False),
        # All examples are of one class.
        ([1, 1, 1], [1, 1, 1], False),
        # Numbers, up to rounding errors of float32.
        ([0.5, 2.5, 4.0], [2.4, 2.4, 2.4 + 1e-7], True),
        ([0.5, 2.5, 4.0], [2.4, 2.4, 2.5], False),
        # Several labels for each example.
        ([[0, 1], [1, 1], [0, 0]], [[0, 1], [0, 1], [0, 1]], True),
        ([[0, 1], [1, 1], [0, 0]], [[0, 1], [0, 1], [1, 1]], False),
        # An answer that is missing everywhere.
        ([0.5, 2.5, 4.0], [np.nan, np.nan, np.nan], True),
    ],
)
def test_constant_answers_are_recognised_for_every_kind_of_target(
    labels: list[Any], answers: list[Any], constant: bool
) -> None:
    assert is_constant(Predictions(np.arange(3), np.array(labels), np.array(answers))) == constant


@pytest.mark.parametrize(("texts", "constant"), [(("a", "a"), True), (("a", "b"), False)])
def test_one_written_answer_to_every_question_is_constant(texts: tuple[str, ...], constant: bool) -> None:
    stored = Predictions(np.arange(2), np.ones(2, int), np.array([1, 0]), text=texts)
    assert is_constant(stored) == constant
    # The same answer is right everywhere: the questions have one answer.
    assert not is_constant(replace(stored, prediction=np.ones(2, int)))


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
    (side,) = fallen(analysis)
    assert side.interval[1] == 1
    assert "5 of 5 runs collapsed" in str(side)
    # It is compared with nothing, and named first all the same.
    assert not analysis.blocks
    assert analysis.faults == (str(side),)
    lines = {line["method"]: line for line in tidy_tables(analysis)["collapses"].lines}
    assert {name: (line["collapsed"], line["runs"]) for name, line in lines.items()} == {
        "head only": (0, 5),
        "LoRA": (0, 5),
        "TensLoRA att": (5, 5),
    }
    page = page_of(analysis, tmp_path).read_text()
    assert page.index("5 of 5 runs collapsed") < page.index("Too few seeds have finished without a collapse")


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
    assert only(analysis).differences[1].verdict.word is Word.EQUIVALENT
    assert only_block(analysis).collapsed == ()


@pytest.mark.parametrize(
    ("fell", "condition", "rates"),
    [
        (["LoRA"], "when the reference trains", "collapses in 0 of 5 runs against 1 of 5"),
        (["TensLoRA att"], "when it trains", "collapses in 1 of 5 runs against 0 of 5"),
        (["LoRA", "TensLoRA att"], "when both train", "collapses in 1 of 5 runs against 1 of 5"),
    ],
)
@pytest.mark.parametrize("diverged", [True, False])
def test_a_verdict_has_two_parts_where_runs_of_either_side_collapsed(
    fell: list[str], condition: str, rates: str, diverged: bool, stored: Stored, tmp_path: Path
) -> None:
    keys = {(method, "digits", 3) for method in fell}
    right = head(700) if diverged else head(700) | dict.fromkeys(keys, 590)
    uri = stored(results_with(right, keys if diverged else ()), PLAN)
    analysis, whole = analyse(read(uri, ["small"])), results_with(head(700))
    assert {side.cell.method: (side.count, side.runs) for side in fallen(analysis)} == dict.fromkeys(
        fell, (1, 5)
    )
    found = only(analysis).differences[1]
    assert (found.verdict.word, found.verdict.condition) == (Word.EQUIVALENT, condition)
    assert found.verdict.collapses == rates
    # The difference is that of the pairs in which neither run collapsed.
    pairs = [seed for seed in range(5) if seed != 3]
    rows = {row.title: row for row in PLAN.rows}
    trials = {trial.id: trial for trial in PLAN.trials}
    scores = {
        title: [whole(trials[rows[title].trials[seed]], rows[title]).score for seed in pairs]
        for title in ("LoRA", "TensLoRA att")
    }
    means = {title: float(np.mean(own)) for title, own in scores.items()}
    assert found.effect.fewest == 4
    assert found.effect.difference == pytest.approx(means["TensLoRA att"] - means["LoRA"])
    # Each score is the mean of its runs that did not collapse, and stands beside their number.
    said = f"equivalent (within 1 point) {condition}; {rates}"
    (line,) = (line for line in tidy_tables(analysis)["differences"].lines)
    assert line["verdict"] == said
    made = compose(read(uri, ["small"]), ["html", "md"])
    for name in ("index.html", "tables/tables.md"):
        text = str(made.files[name])
        assert text.count("1 of 5 runs collapsed)") >= len(fell), name
        assert rates in text, name
    terminal = printed(*summary_of(uri).tables("small"))
    for title in fell:
        assert f"{only_block(analysis).unit.score(means[title])}" in str(made.files["index.html"])
        assert f"{means[title]:.4f}" in terminal
    assert f"({condition}; {rates})" in answers(made.analysis)[0]


def test_runs_that_the_machine_lost_are_counted_apart_from_collapses(analysed: Analysed) -> None:
    def result(trial: Trial, row: Row) -> Result:
        failure = {("LoRA", 1): "out of memory", ("LoRA", 2): "diverged"}.get((row.title, trial.seed), "")
        return replace(results_with({})(trial, row), failure=failure)

    analysis = analysed(result, WITHOUT_HEAD)
    entrant = only(analysis)
    assert entrant.lost == 1
    rates = entrant.differences[1].collapses
    assert rates is not None
    assert (rates.count, rates.runs, rates.reference_count, rates.reference_runs) == (0, 5, 1, 4)


@pytest.mark.parametrize(
    ("method", "reference", "side"),
    [((8, 20), (0, 20), "more often"), ((0, 20), (8, 20), "less often"), ((3, 20), (0, 20), "")],
)
def test_rates_of_collapse_have_a_verdict_of_their_own(
    method: tuple[int, int], reference: tuple[int, int], side: str, results: Results
) -> None:
    cells = results.all_cells[:2]
    sides = {cell.number: Collapses(cell, *own) for cell, own in zip(cells, (method, reference), strict=True)}
    rates = rates_of(sides, cells[:1], cells[1:], 0.95)
    assert rates.side == side
    assert str(rates).endswith(f"against {reference[0]} of 20" + f", significantly {side}" * bool(side))
    # The level is that of all comparisons together.
    assert replace(rates, level=1 - 1e-6).side == ""


def test_no_rates_are_named_where_nothing_collapsed(results: Results) -> None:
    assert str(CollapseRates(0, 5, 0, 5, tuned=False, level=0.95)) == ""


@pytest.mark.parametrize(("count", "runs"), [(0, 5), (1, 13), (5, 5), (3, 20)])
def test_the_interval_is_that_of_clopper_and_pearson(count: int, runs: int, results: Results) -> None:
    side = Collapses(results.all_cells[0], count, runs)
    exact = stats.binomtest(count, runs).proportion_ci(0.95, "exact")
    assert side.interval == pytest.approx((exact.low, exact.high))
    assert f"{count} of {runs} runs collapsed" in str(side)
    assert f"{100 * exact.low:.0f} to {100 * exact.high:.0f}%" in str(side)


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
    (side,) = fallen(analysis)
    assert side.counted in failure
    assert guards.OF_OTHER_RUNS in failure
    page = page_of(analysis, tmp_path).read_text()
    # In the answer and among its notes.
    assert page.count("1 of 5 runs collapsed") >= 2
    (line,) = (line for line in tidy_tables(analysis)["collapses"].lines if line["collapsed"])
    assert (line["method"], line["task"], line["collapsed"], line["runs"]) == ("LoRA", "textile", 1, 5)
    assert (line["collapse_rate_low"], line["collapse_rate_high"]) == side.interval


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
    assert guards.OF_OTHER_RUNS not in failure
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
        collapsed = {each.cell.method for each in fallen(analysis)}
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
    assert Collapses(cell, 1, 1).counted.startswith("1 of 1 kept trial collapsed (")
    assert Collapses(cell, 1, 2).counted.startswith("1 of 2 kept trials collapsed (")
