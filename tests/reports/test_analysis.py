"""Tests comparisons of stored seeds: each is a study of one point."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Row
from tensorbench.reports import evidence
from tensorbench.reports.analysis import Analysis, Block, analyse
from tensorbench.reports.blocks import Entrant
from tensorbench.reports.comparisons import moderated_on_settings
from tensorbench.reports.inference.crossed import of_seeds_and_examples
from tensorbench.reports.inference.effects import Verdict, Word, verdict
from tensorbench.reports.inference.intervals import simultaneous
from tensorbench.reports.results import Results

from ..stored import Result
from .made_up import EXAMPLES, SMALL, Analysed, plan_of, result


def block(analysis: Analysis, budget: str) -> Block:
    return next(block for block in analysis.blocks if block.title == budget)


def compared(block: Block) -> dict[str, Entrant]:
    return {entrant.method: entrant for entrant in block.compared}


def pairs(entrant: Entrant) -> int:
    return sum(part.pairs for part in entrant.differences[1].effect.parts)


def test_a_lost_run_costs_its_pair_and_nothing_else(analysis: Analysis) -> None:
    isorank, isoparameters = block(analysis, "isorank 2"), block(analysis, "isoparameters 2")
    assert isorank.left_out == isoparameters.left_out == {}
    lotr, depth = compared(isorank)["LoTR"], compared(isoparameters)["TensLoRA depth"]
    # One run diverged and two are near guessing: these are no lost runs, and are counted apart.
    assert (pairs(lotr), lotr.lost, pairs(depth), depth.lost) == (14, 1, 12, 0)
    assert compared(isorank)["TensLoRA att"].lost == 0
    assert any("1 method (†)" in note for note in isorank.notes)


def test_diverged_seeds_stand_beside_the_interval(analysis: Analysis) -> None:
    depth = compared(block(analysis, "isoparameters 2"))["TensLoRA depth"]
    # Three of 15 runs diverged or are near guessing. The others are worse by more than the threshold.
    assert depth.differences[1].verdict == Verdict(
        Word.WORSE,
        condition="when it trains",
        collapses="collapses in 3 of 15 runs against 0 of 15",
    )
    collapsed = block(analysis, "isoparameters 2").collapsed
    assert ("TensLoRA depth", 1, 5) in {(side.cell.method, side.count, side.runs) for side in collapsed}


def test_a_setting_that_has_not_been_run_keeps_nobody_out(analysed: Analysed) -> None:
    plan = plan_of(**SMALL | {"tasks": ["digits", "textile"]})
    begun = analysed(lambda t, row: result(t, row) if row.task == "digits" else None, plan)
    only = block(begun, "isorank 2")
    assert only.settings == (("digits", "tiny-random-vit"),)
    assert [c.method for c in only.compared] == ["TensLoRA att"]
    assert any("textile · tiny-random-vit" in note for note in only.notes)


def test_verdicts_separate_different_from_equal_methods(analysis: Analysis) -> None:
    by_method = compared(block(analysis, "isorank 2"))
    # Edges of +8, −1 and −9 of 200 examples; seeds are paired, so their shared noise cancels.
    att, depth, qkv = (by_method[f"TensLoRA {name}"] for name in ("att", "depth", "qkv"))
    assert att.differences[1].verdict == Verdict(Word.BETTER)
    assert att.differences[1].effect.difference == pytest.approx(0.04, abs=0.004)
    assert depth.differences[1].verdict.word is Word.WORSE
    assert depth.differences[1].verdict.condition == "when it trains"
    assert qkv.differences[1].verdict.word in (Word.EQUIVALENT, Word.INCONCLUSIVE)
    assert pairs(att) == 15
    assert "LoRA" not in by_method


def test_intervals_are_simultaneous_over_the_methods_and_on_tasks_over_both(analysis: Analysis) -> None:
    for each in analysis.blocks:
        level = simultaneous(len(each.compared))
        on_tasks = simultaneous(len(each.compared) * len(each.settings))
        for entrant in each.compared:
            found = entrant.differences[1]
            assert found.interval == found.effect.interval(level)
            bare = dataclasses.replace(found.verdict, condition="", collapses="")
            assert bare == verdict(found.interval, each.threshold)
            for part, own in zip(found.effect.parts, found.on.values(), strict=True):
                assert part.error is not None
                assert own.interval == pytest.approx(part.error.interval(part.difference, on_tasks))


def test_a_seed_is_a_study_of_one_point(analysis: Analysis, results: Results) -> None:
    (isorank,) = (each for each in analysis.blocks if each.title == "isorank 2")
    on = {cell.setting: cell for cell in isorank.reference.cells}
    by_trial, _ = evidence.gather(results, results.all_cells)
    alone = {}
    for entrant in isorank.claims:
        for cell in entrant.cells:
            pair = cell, on[cell.setting]
            fell = {id_ for each in pair for id_ in analysis.collapses[each.number].trials}
            finished = [
                {seed.seed: seed for seed in each.trials if seed.finished and seed.trial_id not in fell}
                for each in pair
            ]
            shared = sorted(finished[0].keys() & finished[1].keys())
            sides = [[own[seed] for seed in shared] for own in finished]
            runs = [
                np.stack([by_trial[seed.trial_id].values for seed in side]).astype(float) for side in sides
            ]
            differences = np.subtract(*([seed.score for seed in side] for side in sides))
            alone[cell.number] = dataclasses.replace(
                of_seeds_and_examples(differences, np.subtract(*runs)),
                by_seed=dict(zip(shared, differences.tolist(), strict=True)),
            )
    alone = moderated_on_settings(results, alone, ()).parts
    for entrant in isorank.claims:
        parts = entrant.differences[1].effect.parts
        for cell, part in zip(entrant.cells, parts, strict=True):
            for name in ("difference", "seeds", "examples", "freedom"):
                expected = getattr(alone[cell.number], name)
                assert getattr(part, name) == (expected and pytest.approx(expected, rel=1e-9, abs=1e-15))


def test_methods_without_adapter_are_compared_with_each_budgets_lora(analysis: Analysis) -> None:
    for budget in ("isorank 2", "isoparameters 2"):
        own = block(analysis, budget)
        levels = {level.family: level for level in own.levels}
        head, full = levels["head_only"], levels["full"]
        assert own.reference is not None
        assert {cell.budget for cell in own.reference.cells} == {budget}
        assert head.comparison is not None
        assert head.comparison.verdict.side == "worse"
        assert head.comparison.interval == head.comparison.effect.interval(simultaneous(1))
        # It has a rate of its own, so that its recipe differs.
        assert (full.comparison, full.difference) == (None, None)


def test_plain_lora_of_another_budget_goes_before_one_of_other_sites(analysed: Analysed) -> None:
    att = {"method": "tenslora", "variant": "att", "budgets": [{"isorank": 2}]}
    methods = [{"method": "lora", "rank": 3, "targets": "qkvo"}, "lora", att]
    plan = plan_of(**SMALL | {"methods": methods, "budgets": [{"isoparameters": 2}]})
    reference = block(analysed(result, plan), "isorank 2").reference
    assert reference is not None
    assert [(cell.method, cell.budget) for cell in reference.cells] == [("LoRA", "isoparameters 2")]


def test_test_examples_count_from_the_stored_predictions(analysis: Analysis) -> None:
    isorank = block(analysis, "isorank 2")
    att = compared(isorank)["TensLoRA att"]
    assert isorank.without_examples == ()
    assert [(part.pairs, part.count) for part in att.differences[1].effect.parts] == [(5, EXAMPLES)] * 3
    assert isorank.reference is not None
    cells = zip(att.differences[1].effect.parts, att.cells, isorank.reference.cells, strict=True)
    for part, cell, other in cells:
        assert part.difference == pytest.approx((cell.mean or 0.0) - (other.mean or 0.0))
    error = att.differences[1].effect.error
    assert error is not None
    assert error.examples > 0


def test_predictions_beyond_the_limit_are_not_read_and_a_note_says_so(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "MOST_PREDICTIONS", 20)
    limited = analyse(results)
    isorank = block(limited, "isorank 2")
    assert isorank.without_examples
    assert any("20 runs at most" in note for note in limited.notes)


def test_predictions_that_are_not_those_of_the_score_do_not_count(analysed: Analysed) -> None:
    def result_of(trial: Trial, row: Row) -> Result | None:
        made = result(trial, row)
        return made and dataclasses.replace(made, score=made.score - 0.01 * ("TensLoRA" in row.title))

    analysis = analysed(result_of, plan_of(**SMALL | {"seeds": [0, 1, 2]}))
    assert any("Predictions of 3 runs" in note for note in analysis.notes)
    assert block(analysis, "isorank 2").without_examples


def test_the_report_says_what_it_could_have_found(analysis: Analysis) -> None:
    design = block(analysis, "isorank 2").design
    assert design is not None
    assert (design.settings, design.seeds, design.claims) == (3, 5, 4)
    assert design.finds is not None
    assert 0.004 < design.finds < 0.01
    assert design.examples > 0


def test_scores_that_were_stored_in_float32_are_the_same_scores(analysed: Analysed) -> None:
    def rounded(trial: Trial, row: Row) -> Result | None:
        made = result(trial, row)
        return made and dataclasses.replace(made, score=float(np.float32(made.score)))

    many = plan_of(**SMALL | {"seeds": [0, 1, 2, 3, 4]})
    exact, older = (
        [
            (e.differences[1].verdict, [part.count for part in e.differences[1].effect.parts])
            for each in analysed(made, many).blocks
            for e in each.compared
        ]
        for made in (result, rounded)
    )
    assert exact == older
    assert any(count for _, counts in exact for count in counts)
