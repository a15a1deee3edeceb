"""Tests what reports say of methods under several budgets, and the answers of the study of budgets."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tensorbench
from tensorbench.plan.rows import Plan
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Row
from tensorbench.reports.blocks import Block, Edge, Entrant
from tensorbench.reports.figures import draw
from tensorbench.reports.inference.effects import Verdict, Word
from tensorbench.reports.inference.intervals import simultaneous
from tensorbench.reports.inference.studies import score_after
from tensorbench.reports.ranks import contrast, over_budgets
from tensorbench.reports.tables import budgets_table, scores_table
from tensorbench.reports.tidy import tidy_tables

from ..stored import Result
from .made_up import Analysed, Stored
from .made_up_ranks import METHOD, ROWS, SUITE, made_up, of_row
from .made_up_studies import NAME, plan_of, ran_again


def under(*ranks: int, **changes: Any) -> Plan:
    """The plan of LoRA, a tensor and the converged head, with as many parameters as LoRA with these ranks."""
    sizes = [{"isoparameters": rank, "tolerance": 0.5} for rank in ranks]
    return plan_of(**SUITE | {"methods": ["converged_head", "lora", ROWS[0]], "budgets": sizes} | changes)


def gains_with_size(trial: Trial, row: Row) -> Result:
    """The same results, with 5 points more for the tensor under the largest budget."""
    return made_up(trial, row, 5.0 * (row.title == METHOD and row.budget == "isoparameters 8"))


@pytest.mark.parametrize("ranks", [(4, 2), (4, 2, 8)])
def test_methods_under_several_budgets_are_shown_by_size(ranks: tuple[int, ...], analysed: Analysed) -> None:
    analysis = analysed(made_up, under(*ranks))
    (group,) = analysis.over_budgets
    assert [block.budget for block in group.blocks] == [f"isoparameters {rank}" for rank in sorted(ranks)]
    lines = budgets_table(group).lines
    assert len(lines) == len(group.methods) * len(ranks)
    for line in lines:
        block = next(block for block in group.blocks if block.budget == line["budget"])
        entrant = of_row(block, line["method"])
        assert float(line["mean"].shown) == pytest.approx(100 * entrant.means[5].value, abs=0.005)
        assert line["parameters"] == f"{entrant.parameters:,}"
    # Two budgets are no curve.
    drawn = [figure for figure in draw(analysis)[0] if figure.name.startswith("ranks-budgets")]
    assert len(drawn) == (len(ranks) > 2)
    assert all(
        "converged head" in [line.get_label() for line in figure.figure.axes[0].lines] for figure in drawn
    )


def test_a_method_is_compared_with_itself_under_the_next_smaller_budget(analysed: Analysed) -> None:
    analysis = analysed(gains_with_size, under(2, 4, 8))
    (group,) = analysis.over_budgets
    assert {name: [*own] for name, own in group.steps.items()} == {
        name: ["isoparameters 4", "isoparameters 8"] for name in ("LoRA", METHOD)
    }
    of_tensor = [of_row(block, METHOD) for block in group.blocks]
    for smaller, larger in pairwise(of_tensor):
        budget = larger.cells[0].budget
        step = group.steps[METHOD][budget]
        after = [np.mean([score_after(each, 5) for each in entrant.studies]) for entrant in (smaller, larger)]
        assert step.effect.difference == pytest.approx(after[1] - after[0], abs=1e-12)
        assert step.interval == step.effect.interval(simultaneous(4))
        # No variance is moderated.
        assert all(part.freedom == 2 for part in step.effect.parts)
    assert group.steps[METHOD]["isoparameters 8"].verdict == Verdict(Word.BETTER)
    assert not group.steps[METHOD]["isoparameters 4"].verdict.side
    assert [line["budget"] for line in tidy_tables(analysis)["budgets"].lines] == 2 * [
        "isoparameters 4",
        "isoparameters 8",
    ]


def test_sizes_that_differ_between_tasks_are_all_shown(analysed: Analysed) -> None:
    analysis = analysed(made_up, under(2))
    (block,) = analysis.blocks
    (first, own), *others = block.entrants[0].on.items()
    assert others
    on = {first: replace(own, cell=replace(own.cell, parameters=7)), **dict(others)}
    changed = replace(block, entrants=(replace(block.entrants[0], on=on),))
    (line, *_) = scores_table(analysis.results, changed).lines
    assert line["parameters"] == f"7 or {block.entrants[0].parameters:,}"


def test_rates_are_drawn_about_the_score_of_a_reference_of_another_budget(analysed: Analysed) -> None:
    plans = under(4, methods=["lora"]), under(8, methods=[ROWS[0]], name="other")
    analysis = analysed(gains_with_size, *plans)
    block = analysis.blocks[1]
    assert block.reference is not None
    assert block.reference.cells != block.entrants[0].cells
    (drawn,) = (figure for figure in draw(analysis)[0] if figure.name == "rates-1")
    settings = [*block.entrants[0].on]
    dots = [each for each in drawn.figure.axes[0].collections if len(each.get_offsets())]
    highest = max(each.get_offsets()[:, 1].max() for each in dots)
    gains = [
        block.entrants[0].on[setting].studies.scores.max()
        - score_after(block.reference.on[setting].studies, block.k)
        for setting in settings
    ]
    assert highest == pytest.approx(100 * max(gains), abs=1e-6)


def test_steps_lead_to_more_parameters(analysed: Analysed) -> None:
    # Where a budget gives the rank, methods differ in size, and LoRA has the trials of another budget.
    budgets = [{"isorank": 4}, {"isoparameters": 2, "tolerance": 0.5}, {"isoparameters": 4, "tolerance": 0.5}]
    (group,) = analysed(
        made_up, plan_of(**SUITE | {"methods": ["lora", ROWS[0]], "budgets": budgets})
    ).over_budgets
    count = sum(map(len, group.steps.values()))
    assert count == 3
    for name, own in group.methods.items():
        sizes = [entrant.parameters for entrant in own.values()]
        assert sizes == sorted(sizes)
        larger = [budget for (_, a), (budget, b) in pairwise(own.items()) if b.parameters > a.parameters]
        assert [*group.steps[name]] == larger
        for step in group.steps[name].values():
            assert step.interval == step.effect.interval(simultaneous(count))


def test_no_step_leads_to_another_recipe(analysed: Analysed) -> None:
    first, second = analysed(made_up, under(2, 8)).blocks

    def longer(entrant: Entrant) -> Entrant:
        cells = {setting: replace(each.cell, recipe={"epochs": "9"}) for setting, each in entrant.on.items()}
        return replace(
            entrant, on={setting: replace(each, cell=cells[setting]) for setting, each in entrant.on.items()}
        )

    def unasked(block: Block) -> Block:
        raise AssertionError(block.title)

    other = replace(second, entrants=tuple(map(longer, second.entrants)))
    (group,) = over_budgets([first, other], unasked)
    assert len(group.methods) == 2
    assert not group.steps


def best_at_the_upper_end(trial: Trial, row: Row) -> Result:
    """The same results, but the tensor's rates under the largest budget are better the higher they are."""
    rises = row.title == METHOD and row.budget == "isoparameters 8" and row.studies
    return made_up(trial, row, 40 * row.studies.trials[trial.seed].offset - 30 if rises else 0.0)


def test_a_method_whose_best_rates_lie_at_an_edge_is_not_worse_under_its_budget(analysed: Analysed) -> None:
    (group,) = analysed(best_at_the_upper_end, under(2, 4, 8)).over_budgets
    step = group.steps[METHOD]["isoparameters 8"]
    assert step.interval is not None
    assert step.interval[1] < 0
    why = f"the best rates of {METHOD} (isoparameters 8) lie at an edge"
    assert step.verdict == Verdict(Word.INCONCLUSIVE, reason=why)


# --- the answers of the study of budgets ---


def test_the_questions_about_budgets_are_answered(
    stored: Stored, tmp_path: Path, script: Callable[[str], ModuleType]
) -> None:
    def made(trial: Trial, row: Row) -> Result:
        """Each doubling of the parameters brings the tensor 1.5 points, and LoRA none."""
        doublings = {"isoparameters 1": -2, "isoparameters 16": 2}.get(row.budget or "", 0)
        return made_up(trial, row, 1.5 * doublings * (row.title == METHOD))

    again, study = tmp_path / "budgets.tensorbench.zip", tmp_path / "study.tensorbench.zip"
    tensorbench.pack(NAME, out=str(again), store=stored(ran_again(made), under(1, 4, 16)))
    tensorbench.pack("study", out=str(study), store=stored(made, under(4, name="study")))
    questions, shown = script("answers.budgets"), script("answers.answer")
    budgets = questions.StudyOfBudgets(again, study)
    answers = budgets.answers()
    assert list(answers) == [f"Question B{number}" for number in range(1, 5)]
    assert all(each.text.startswith("On 3 of 3 studies.") for each in answers.values())
    by_budget = {block.budget: block for block in budgets.analysis.blocks}
    methods = budgets.group.methods
    outer = [of_row(by_budget[f"isoparameters {rank}"], METHOD).differences[5] for rank in (1, 16)]
    # The two comparisons with LoRA are one family, and so are the four of each method with itself.
    assert all(
        f"| {shown.bounds(e.effect.interval(simultaneous(2)))} |" in answers["Question B1"].text
        for e in outer
    )
    worse, better = answers["Question B1"].short.split("; ")
    assert re.fullmatch(r"\*\*worse\*\*: a quarter of the budget \(\d of 6 kept trials .*\)", worse)
    assert better == "**better**: four times the budget."
    as_good, better = answers["Question B2"].short.split("; ")
    assert better.startswith("**better**")
    assert better.count(f"{METHOD} from") == as_good.count("LoRA from") == 2
    assert all("Interim" not in each.short for each in answers.values())
    # The contrast is between the differences, and its interval covers no other.
    difference = outer[1].effect.difference - outer[0].effect.difference
    (row,) = [
        line
        for line in answers["Question B3"].text.splitlines()
        if line.startswith(f"| {shown.points(difference)} | ")
    ]
    of_both = [methods[name]["isoparameters 16"] for name in (METHOD, "LoRA")] + [
        methods[name]["isoparameters 1"] for name in ("LoRA", METHOD)
    ]
    weights = np.tile([[1.0], [-1.0], [1.0], [-1.0]], len(by_budget["isoparameters 1"].settings))
    expected = contrast(budgets.analysis.results, of_both, weights, 5).effect
    assert expected.difference == pytest.approx(difference, abs=1e-12)
    assert row.split(" | ")[1] == shown.bounds(expected.interval(simultaneous(1)))
    assert "**is higher at four times the parameters than at a quarter**" in answers["Question B3"].short
    assert answers["Question B4"].text.count("| four times the budget |") == 2
    # The page opens with all answers, a figure, and a table of all rows with the differences of B1 and B2.
    first = budgets.first(answers)
    assert all(answers[f"Question B{number}"].short in first for number in (1, 2, 3))
    assert budgets.picture().shown in first
    by_size = [line.split(" | ") for line in first.splitlines() if line.startswith((f"| {METHOD}", "| LoRA"))]
    assert [len(line) for line in by_size] == 6 * [7]
    assert [line[3] == "–" for line in by_size] == [True, True, True, False, True, False]
    assert [line[5] == "–" for line in by_size] == [True, False, False] * 2
    smallest, _, largest = (line for line in by_size if METHOD in line[0])
    assert smallest[4].startswith("worse; ")
    assert smallest[3:5] == [
        shown.with_interval(outer[0].effect.difference, budgets.beside["isoparameters 1"].interval),
        smallest[4],
    ]
    assert largest[4] == "better"
    assert "- Failed trials: none." in first
    # A better rate of the tensor under the largest budget could only add to the rise.
    edge = Edge(METHOD, "upper", (1e-3, 1e-1), 1e-2)
    for budget, outcome in (
        ("isoparameters 16", "is higher at four times the parameters than at a quarter"),
        ("isoparameters 1", "is inconclusive"),
    ):
        edges = [replace(b, edges=(edge,) * (b.budget == budget)) for b in budgets.analysis.blocks]
        assert outcome in budgets.interaction(*edges).short


def test_no_budget_is_compared_unless_trials_of_the_first_study_ran_again(
    stored: Stored, tmp_path: Path, script: Callable[[str], ModuleType]
) -> None:
    def but_of_the_first(trial: Trial, row: Row) -> Result | None:
        return (made_up if row.budget == "isoparameters 4" else ran_again(made_up))(trial, row)

    pack = tmp_path / "pack.tensorbench.zip"
    tensorbench.pack(NAME, out=str(pack), store=stored(but_of_the_first, under(1, 4)))
    answers = script("answers.budgets").StudyOfBudgets(pack, pack).answers()
    assert all("has to run again first" in each.text and not each.short for each in answers.values())
