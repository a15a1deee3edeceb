"""Tests verdicts on stores whose truth is known."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.stored_plan import Row
from tensorbench.reports.analysis import Analysis, Block, analyse
from tensorbench.reports.answers import answer
from tensorbench.reports.blocks import Comparison, Entrant
from tensorbench.reports.inference.effects import Verdict, Word
from tensorbench.reports.inference.intervals import Error, simultaneous
from tensorbench.reports.tables import scores_table

from ..messages import naming
from ..stored import Result
from .browsing import page_of
from .made_up import SMALL, Analysed, Composes, plan_of

ResultOf = Callable[[Trial, Row], Result | None]
OfSuites = Callable[..., Analysis]

FIVE: dict[str, Any] = SMALL | {"seeds": [0, 1, 2, 3, 4]}
OTHER = {"name": "other", "methods": [{"method": "tenslora", "variant": "att"}]}


def scores(edge: float = 0.0, noise: float = 0.007, *, seed: int = 0) -> ResultOf:
    """Results without predictions: scores around 0.8 with this noise per run and this edge over LoRA."""

    def result_of(trial: Trial, row: Row) -> Result | None:
        own = random.Random(f"{row.title} {row.task} {trial.seed} {seed}")
        return Result(score=0.8 + own.gauss(0, noise) + edge * (row.title != "LoRA"), answers=(), labels=())

    return result_of


def of(analysis: Analysis, title: str = "isorank 2") -> Block:
    return next(block for block in analysis.blocks if block.title == title)


def entrant(analysis: Analysis, title: str = "isorank 2") -> Entrant:
    (compared,) = of(analysis, title).compared
    return compared


def only(analysis: Analysis, title: str = "isorank 2") -> Comparison:
    return entrant(analysis, title).differences[1]


@pytest.fixture
def of_suites(analysed: Analysed) -> OfSuites:
    """A function that returns the analysis of suites, each of which is given by its changes of `FIVE`."""
    return lambda result_of, *suites: analysed(result_of, *(plan_of(**FIVE | each) for each in suites))


# --- the same recipe ---


def test_rows_of_another_recipe_are_never_compared(of_suites: OfSuites) -> None:
    analysis = of_suites(scores(0.05), {"methods": ["lora"]}, OTHER | {"training": {"epochs": 30}})
    assert [block.title for block in analysis.blocks] == ["isorank 2", "isorank 2 · recipe 2"]
    assert all(block.compared == () for block in analysis.blocks)
    notes = of(analysis, "isorank 2 · recipe 2").notes
    assert "training epochs 30 against 10" in notes[0]
    assert "no verdict" in notes[0]
    assert notes[1].startswith("LoRA ")
    assert "training epochs 10 against 30" in notes[1]


def test_rates_that_a_suite_sets_by_hand_are_another_recipe(of_suites: OfSuites) -> None:
    by_hand = {"methods": ["lora", {"method": "tenslora", "variant": "att", "training": {"lr": 0.01}}]}
    analysis = of_suites(scores(0.05), by_hand)
    assert all(block.compared == () for block in analysis.blocks)
    assert "training lr 0.01 against 0.0005" in of(analysis, "isorank 2 · recipe 2").notes[0]


def test_the_recipe_is_of_each_setting(of_suites: OfSuites) -> None:
    tasks = ["digits", {"task": "textile", "training": {"epochs": 3}}]
    analysis = of_suites(scores(0.05), {"tasks": tasks})
    assert [block.title for block in analysis.blocks] == ["isorank 2"]
    assert len(only(analysis).effect.parts) == 2


def test_metrics_are_never_averaged_and_have_thresholds_of_their_own(
    of_suites: OfSuites,
) -> None:
    def result_of(trial: Trial, row: Row) -> Result | None:
        made = scores(0.05)(trial, row)
        metric = "matthews" if row.task == "textile" else "accuracy"
        return made and dataclasses.replace(made, tags={"metric": metric})

    analysis = of_suites(result_of, {"tasks": ["digits", "textile"]})
    assert [(block.title, block.threshold) for block in analysis.blocks] == [
        ("isorank 2 · accuracy", 0.01),
        ("isorank 2 · matthews", 0.02),
    ]
    assert [len(block.settings) for block in analysis.blocks] == [1, 1]
    with_threshold = analyse(analysis.results, {"matthews": 0.05}).blocks
    assert [block.threshold for block in with_threshold] == [0.01, 0.05]
    with pytest.raises(UserError, match=naming("accuracy, matthews", "accuracy=0.01 matthews=0.02")):
        analyse(analysis.results, 0.03)
    assert any("(accuracy, matthews)" in note for note in analysis.notes)


def test_small_units_change_nothing_but_the_numbers(of_suites: OfSuites) -> None:
    labels, noise = np.random.default_rng(5).normal(size=(2, 300))

    def in_units(unit: float, wrong: float = 1.0) -> Analysis:
        def result_of(trial: Trial, row: Row) -> Result | None:
            own = random.Random(f"{row.title} {trial.seed}").gauss(0, 0.02)
            answers = labels + noise * ({"TensLoRA att": 0.8}.get(row.title, 1.0) + own)
            score = float(np.sqrt(np.mean((unit * answers - unit * labels) ** 2)))
            values = {"answers": unit * answers, "labels": unit * labels, "validation": [score]}
            stored = score * (wrong if "TensLoRA" in row.title else 1.0)
            return Result(score=stored, tags={"metric": "rmse", "unit": "mol/l"}, **values)

        return of_suites(result_of, {"methods": [*FIVE["methods"], "lotr"]})

    claims: list[list[tuple[str, Verdict]]] = []
    numbers: list[list[float]] = []
    for unit in (1.0, 1e-7):
        analysis = in_units(unit)
        (block,) = analysis.blocks
        claims.append([(each.method, each.differences[1].verdict) for each in block.compared])
        numbers.append(
            [
                bound / unit
                for each in block.compared
                for interval in (
                    each.differences[1].interval,
                    *(own.scores[1].interval for own in each.on.values()),
                )
                for bound in interval or ()
            ]
        )
    assert claims[0] == claims[1]
    assert ("TensLoRA att", Verdict(Word.BETTER)) in claims[0]
    assert numbers[0] == pytest.approx(numbers[1])
    # Predictions that contradict the score are reported as well.
    mismatch = "do not give the score that is stored"
    assert not any(mismatch in note for note in analysis.notes)
    assert any(mismatch in note for note in in_units(1e-7, wrong=1.1).notes)


# --- three answers ---


@pytest.mark.parametrize("seed", range(3))
def test_a_true_difference_of_more_than_the_threshold_is_never_called_within_it(
    seed: int, of_suites: OfSuites
) -> None:
    tasks = {"tasks": ["digits", "textile"]}
    assert only(of_suites(scores(0.012, seed=seed), tasks)).verdict.word is not Word.EQUIVALENT


def test_equal_methods_are_equivalent_under_little_noise(of_suites: OfSuites) -> None:
    assert only(of_suites(scores(0.0, noise=0.001), {})).verdict.word is Word.EQUIVALENT


def test_a_large_difference_is_beyond(of_suites: OfSuites) -> None:
    assert only(of_suites(scores(-0.06, noise=0.005), {})).verdict == Verdict(Word.WORSE)


# --- bad input ---


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_two_seeds_have_no_interval_and_no_verdict(
    seeds: list[int], of_suites: OfSuites, tmp_path: Path
) -> None:
    analysis = of_suites(scores(0.1), {"seeds": seeds})
    comparison = only(analysis)
    assert (comparison.verdict.word, comparison.interval) == (Word.NONE, None)
    assert [each.interval for each in comparison.on.values()] == [None]
    assert [own.scores[1].interval for own in analysis.blocks[0].entrants[0].on.values()] == [None]
    assert of(analysis).design is None
    assert any("training varies" in note for note in analysis.notes)
    assert any("3 seeds with LoRA" in note for note in of(analysis).notes)
    assert f"no interval: {len(seeds)} pair" in page_of(analysis, tmp_path).read_text()


def test_a_task_without_an_interval_names_its_own_pairs(of_suites: OfSuites) -> None:
    def result_of(trial: Trial, row: Row) -> Result | None:
        made = scores(0.1)(trial, row)
        lost = row.task == "textile" and trial.seed == 1
        return made and dataclasses.replace(made, failure="error" if lost else "")

    analysis = of_suites(result_of, {"seeds": [0, 1], "tasks": ["digits", "textile"]})
    lines = scores_table(analysis.results, of(analysis)).lines
    (line,) = (line for line in lines if line["method"].startswith("TensLoRA att"))
    assert line["digits"].beneath == "no interval: 2 pairs"
    assert line["textile"].beneath == "no interval: 1 pair"


def test_no_interval_leaves_what_scores_can_be(of_suites: OfSuites) -> None:
    def result_of(trial: Trial, row: Row) -> Result:
        low = trial.seed in {0, 3} if row.title == "LoRA" else trial.seed == 4
        return Result(score=0.905 if low else 0.999, answers=(), labels=())

    analysis = of_suites(result_of, {})
    for cell in analysis.results.all_cells:
        score = analysis.score(cell)
        assert score is not None
        assert score.interval is not None
        assert score.interval[0] >= 0
        assert score.interval[1] == 1
    error = Error(seeds=1.0, freedom=4, examples=0.0, limit=1.0)
    assert error.interval(0.5) == (-1, 1)


def test_without_lora_methods_are_compared_with_one_another_alone(of_suites: OfSuites) -> None:
    analysis = of_suites(scores(0.05), {"methods": ["lotr", {"method": "tenslora", "variant": "att"}]})
    assert of(analysis).compared == ()
    assert any("No LoRA among these methods has finished runs" in note for note in of(analysis).notes)


def test_a_budget_whose_lora_failed_has_no_reference(of_suites: OfSuites) -> None:
    def result_of(trial: Trial, row: Row) -> Result | None:
        made = scores(0.05)(trial, row)
        lost = row.title == "LoRA" and row.budget == "isorank 2"
        return made and dataclasses.replace(made, failure="error" if lost else "")

    analysis = of_suites(
        result_of, {"budgets": [{"isorank": 2}, {"isorank": 3}], "methods": [*FIVE["methods"], "lotr"]}
    )
    assert of(analysis).compared == ()
    assert any("No LoRA among these methods has finished runs" in note for note in of(analysis).notes)
    assert len(of(analysis, "isorank 3").compared) == 2


def test_a_reference_of_another_budget_is_named_with_it(of_suites: OfSuites, tmp_path: Path) -> None:
    analysis = of_suites(scores(0.05), {"methods": ["lora"]}, OTHER | {"budgets": [{"isorank": 3}]})
    note = "The reference is LoRA under another budget, isorank 2."
    assert [note in block.notes for block in analysis.blocks] == [False, True]
    assert note in page_of(analysis, tmp_path).read_text()


def test_equal_scores_give_no_estimate_of_noise(of_suites: OfSuites) -> None:
    analysis = of_suites(scores(0.0, noise=0.0), {})
    assert only(analysis).verdict.word is Word.NONE
    assert any("noise is unknown" in note for note in of(analysis).notes)


def test_answers_that_are_no_numbers_are_wrong_ones(of_suites: OfSuites) -> None:
    labels = np.arange(100) % 2

    def result_of(trial: Trial, row: Row) -> Result | None:
        answers = np.where(np.random.default_rng(trial.seed).random(100) < 0.9, labels, 1 - labels).astype(
            float
        )
        if row.title != "LoRA":
            answers[: 20 + trial.seed] = np.nan
        return Result(score=float((answers == labels).mean()), answers=answers, labels=labels)

    analysis = of_suites(result_of, {})
    assert [part.count for part in only(analysis).effect.parts] == [100]
    assert only(analysis).verdict.side == "worse"


def test_experiments_of_other_seeds_have_no_pairs(of_suites: OfSuites) -> None:
    analysis = of_suites(scores(0.05), {"methods": ["lora"]}, OTHER | {"seeds": [5, 6, 7, 8, 9]})
    assert of(analysis).compared == ()
    assert any("no finished seed" in note for note in of(analysis).notes)


def test_a_setting_whose_runs_all_failed_costs_the_method_its_mean_alone(
    of_suites: OfSuites, tmp_path: Path
) -> None:
    def result_of(trial: Trial, row: Row) -> Result | None:
        made = scores(0.05)(trial, row)
        assert made is not None
        lost = row.task == "textile" and row.title == "LoTR"
        return dataclasses.replace(made, failure="diverged") if lost else made

    analysis = of_suites(result_of, {"tasks": ["digits", "textile"], "methods": [*FIVE["methods"], "lotr"]})
    block = of(analysis)
    assert [each.method for each in block.compared] == ["TensLoRA att"]
    assert block.left_out == {"LoTR": "collapsed in all its runs on textile · tiny-random-vit"}
    # LoTR is compared where it has run, without a mean over all tasks.
    (lotr,) = block.part
    ((setting, own),) = lotr.on.items()
    assert setting.task == "digits"
    assert block.reference is not None
    pair = own.cell, block.reference.on[setting].cell
    alone = [[seed.score or 0.0 for seed in cell.trials] for cell in pair]
    found = lotr.differences[1]
    assert found.effect.difference == pytest.approx(float(np.subtract(*alone).mean()))
    assert found.interval == found.effect.interval(simultaneous(2))
    (line,) = (line for line in scores_table(analysis.results, block).lines if line["method"] == "LoTR")
    assert (line["textile"], line["mean"]) == ("–", "–")
    assert line["difference from LoRA"].endswith(" on 1 of 2 tasks")
    assert "not on all tasks: LoTR" in answer(block)
    assert "on 1 of 2 tasks" in page_of(analysis, tmp_path).read_text()


@pytest.mark.parametrize("changes", [{"seeds": [0]}, {"methods": ["lotr"]}, {"methods": ["lora"]}])
def test_little_can_be_reported_all_the_same(changes: dict[str, Any], composed: Composes) -> None:
    done = composed(scores(0.0), plan_of(**FIVE | changes), formats=["html", "md", "csv", "json"])
    assert "index.html" in done.files


@pytest.mark.parametrize(("errors", "trained"), [(1.0, False), (1.9, False), (2.1, True)])
def test_losses_show_training_from_two_standard_errors_below_guessing_on(
    analysed: Analysed, errors: float, trained: bool
) -> None:
    # Five seeds whose losses have a standard error of 0.01 below guessing. Without answers only losses tell.
    off = {seed: 0.01 * place * 5**0.5 / 2.5**0.5 for seed, place in enumerate((-2, -1, 0, 1, 2))}

    def result_of(trial: Trial, row: Row) -> Result:
        loss = 1 - 0.01 * errors - off[trial.seed]
        measures = {Measure.SELECTED_LOSS: loss, Measure.GUESSING_LOSS: 1.0}
        return Result(score=0.8 + 0.001 * trial.seed, answers=(), labels=(), measures=measures)

    withheld = [
        each.reason.startswith("nothing trained")
        for each in verdicts_of(analysed(result_of, plan_of(**FIVE)))
    ]
    assert withheld
    assert all(each is not trained for each in withheld)


def verdicts_of(analysis: Analysis) -> list[Verdict]:
    return [e.differences[block.k].verdict for block in analysis.blocks for e in block.compared]
