"""Tests comparisons, ranks and groups of stored scores, and when they make no claim."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tensorbench.plan.rows import Row
from tensorbench.plan.trial import Trial
from tensorbench.reports import evidence
from tensorbench.reports.analysis import Analysis, Block, analyse
from tensorbench.reports.comparisons import AgainstReference
from tensorbench.reports.findings import against
from tensorbench.reports.inference.effects import Answer, Verdict, verdict, weaker
from tensorbench.reports.inference.intervals import simultaneous
from tensorbench.reports.reading import read
from tensorbench.reports.study import Study

from ..stored import Result
from .made_up import EXAMPLES, SMALL, NewStore, plan_of, result, store


def block(analysis: Analysis, budget: str) -> Block:
    return next(block for block in analysis.blocks if block.title == budget)


def compared(block: Block) -> dict[str, AgainstReference]:
    return {comparison.method: comparison for comparison in block.comparisons}


def test_a_lost_run_costs_its_pair_and_nothing_else(analysis: Analysis) -> None:
    isorank, isoparameters = block(analysis, "isorank 2"), block(analysis, "isoparameters 2")
    assert isorank.left_out == isoparameters.left_out == {}
    lotr, depth = compared(isorank)["LoTR"], compared(isoparameters)["TensLoRA depth"]
    assert (lotr.effect.pairs, lotr.lost, depth.effect.pairs, depth.lost) == (14, 1, 14, 1)
    assert compared(isorank)["TensLoRA att"].lost == 0
    assert any("1 method (†)" in note for note in isorank.notes)


def test_diverged_runs_scored_at_the_floor(analysis: Analysis) -> None:
    depth = compared(block(analysis, "isoparameters 2"))["TensLoRA depth"]
    assert depth.if_floor is not None
    # The head alone is 40 of 200 examples below LoRA, on one of 15 pairs instead of 9.
    assert depth.if_floor.pairs == 1
    assert depth.if_floor.effect.difference < depth.effect.difference - 0.008
    assert depth.interval is not None
    assert depth.if_floor.interval is not None
    assert depth.if_floor.interval[0] < depth.interval[0]
    assert depth.interval[1] < -block(analysis, "isoparameters 2").threshold
    assert depth.verdict == depth.if_floor.verdict == Verdict(Answer.UNDECIDED, "worse")
    # A run that never started says nothing about its method.
    assert compared(block(analysis, "isorank 2"))["LoTR"].if_floor is None


def test_a_setting_that_has_not_been_run_keeps_nobody_out(tmp_path: Path, new_store: NewStore) -> None:
    plan = plan_of(**SMALL | {"tasks": ["digits", "textile"]})
    uri = store(tmp_path, new_store, plan, lambda t, row: result(t, row) if row.task == "digits" else None)
    only = block(analyse(read(uri, ["small"])), "isorank 2")
    assert only.settings == (("digits", "tiny-random-vit"),)
    assert [c.method for c in only.comparisons] == ["TensLoRA att"]
    assert any("textile · tiny-random-vit" in note for note in only.notes)


def test_verdicts_separate_different_from_equal_methods(analysis: Analysis) -> None:
    by_method = compared(block(analysis, "isorank 2"))
    # Edges of +8, −1 and −9 of 200 examples; seeds are paired, so their shared noise cancels.
    assert by_method["TensLoRA att"].verdict == Verdict(Answer.BEYOND, "better")
    assert by_method["TensLoRA att"].effect.difference == pytest.approx(0.04, abs=0.004)
    assert by_method["TensLoRA depth"].verdict == Verdict(Answer.BEYOND, "worse")
    assert by_method["TensLoRA qkv"].verdict.answer in (Answer.WITHIN, Answer.UNDECIDED)
    assert by_method["TensLoRA att"].effect.pairs == 15
    assert "LoRA" not in by_method


def test_the_verdict_is_what_the_interval_says_and_no_more_than_with_the_floor(analysis: Analysis) -> None:
    floors = 0
    for each in analysis.blocks:
        for comparison in each.comparisons:
            expected = verdict(comparison.interval, each.threshold, collapsed=bool(comparison.collapsed))
            if (floor := comparison.if_floor) is not None:
                floors += 1
                expected = weaker(expected, floor.verdict)
            assert comparison.verdict == expected == against(each, comparison).verdict
            assert comparison.interval == comparison.effect.interval(simultaneous(len(each.comparisons)))
    assert floors


def test_baselines_are_compared_with_lora_of_the_first_budget(analysis: Analysis) -> None:
    own = block(analysis, "fixed size")
    assert own.reference is not None
    assert (own.reference.method, own.reference.budget) == ("LoRA", "isorank 2")
    assert compared(own)["head only"].verdict.side == "worse"


def test_plain_lora_of_another_budget_goes_before_one_of_other_sites(
    tmp_path: Path, new_store: NewStore
) -> None:
    att = {"method": "tenslora", "variant": "att", "budgets": [{"isorank": 2}]}
    methods = [{"method": "lora", "rank": 3, "targets": "qkvo"}, "lora", att]
    plan = plan_of(**SMALL | {"methods": methods, "budgets": [{"isoparameters": 2}]})
    uri = store(tmp_path, new_store, plan)
    reference = block(analyse(read(uri, ["small"])), "isorank 2").reference
    assert reference is not None
    assert (reference.method, reference.budget) == ("LoRA", "isoparameters 2")


def test_groups_and_ranks_follow_the_scores(analysis: Analysis) -> None:
    isorank = block(analysis, "isorank 2")
    assert isorank.methods == ("TensLoRA att", "LoTR", "LoRA", "TensLoRA qkv", "TensLoRA depth")
    assert isorank.ranking is not None
    letters, ranks = isorank.ranking.letters, isorank.ranking.ranks
    assert letters is not None
    assert not set(letters[0]) & set(letters[1])
    assert set(letters[2]) & set(letters[3])
    assert ranks.mean[0] == 1
    assert ranks.low is not None
    assert ranks.high is not None
    assert [(low, high) for low, high in zip(ranks.low, ranks.high, strict=True)][2:4] == [(3, 4), (3, 4)]


def test_test_examples_count_from_the_stored_predictions(analysis: Analysis) -> None:
    isorank = block(analysis, "isorank 2")
    att = compared(isorank)["TensLoRA att"]
    assert isorank.without_examples == ()
    assert [(part.pairs, part.count) for part in att.effect.parts] == [(5, EXAMPLES)] * 3
    cells = zip(att.effect.parts, att.cells, att.reference_cells, strict=True)
    for part, cell, other in cells:
        means = [analysis.study.cells.at[number, "mean"] for number in (cell, other)]
        assert part.difference == pytest.approx(means[0] - means[1])
    assert att.effect.error is not None
    assert att.effect.error.examples > 0


def test_predictions_beyond_the_limit_are_not_read_and_a_note_says_so(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "MOST_PREDICTIONS", 20)
    limited = analyse(study)
    isorank = block(limited, "isorank 2")
    assert isorank.without_examples
    assert any("20 runs at most" in note for note in limited.notes)


def test_predictions_that_are_not_those_of_the_score_do_not_count(
    tmp_path: Path, new_store: NewStore
) -> None:
    def result_of(trial: Trial, row: Row) -> Result | None:
        made = result(trial, row)
        return made and dataclasses.replace(made, score=made.score - 0.01 * ("TensLoRA" in row.title))

    analysis = analyse(read(store(tmp_path, new_store, result_of=result_of), ["small"]))
    assert any("Predictions of 2 runs" in note for note in analysis.notes)
    assert block(analysis, "isorank 2").without_examples


def test_the_report_says_what_it_could_have_found(analysis: Analysis) -> None:
    design = block(analysis, "isorank 2").design
    assert design is not None
    assert (design.settings, design.seeds, design.claims) == (3, 5, 4)
    assert design.finds is not None
    assert 0.004 < design.finds < 0.01
    assert design.examples > 0


def test_a_verdict_is_tried_without_each_task(analysis: Analysis) -> None:
    att = compared(block(analysis, "isorank 2"))["TensLoRA att"]
    assert att.sides == (3, 0, 0)
    assert [leave_out.task for leave_out in att.without] == ["movie-sentiment", "digits", "textile"]
    parts = att.effect.parts[1:]
    assert att.without[0].difference == pytest.approx(np.mean([part.difference for part in parts]))


def test_settings_are_won_tied_and_lost_by_their_intervals(analysis: Analysis) -> None:
    att = compared(block(analysis, "isorank 2"))["TensLoRA att"]
    intervals = ((0.1, 0.2), (-0.1, 0.2), (-0.2, -0.1), None)
    mixed = dataclasses.replace(att, verdicts=tuple(verdict(each, 0.01) for each in intervals))
    assert mixed.sides == (1, 2, 1)


def test_intervals_of_settings_hold_for_all_methods_and_settings_at_once(analysis: Analysis) -> None:
    isorank = block(analysis, "isorank 2")
    level = simultaneous(len(isorank.comparisons) * len(isorank.settings))
    for comparison in isorank.comparisons:
        for place, part in enumerate(comparison.effect.parts):
            assert part.error is not None
            interval = part.error.interval(part.difference, level)
            assert against(isorank, comparison, place).interval == comparison.intervals[place] == interval


def test_scores_that_were_stored_in_float32_are_the_same_scores(tmp_path: Path, new_store: NewStore) -> None:
    def rounded(trial: Trial, row: Row) -> Result | None:
        made = result(trial, row)
        return made and dataclasses.replace(made, score=float(np.float32(made.score)))

    many = plan_of(**SMALL | {"seeds": [0, 1, 2, 3, 4]})
    exact, older = (
        analyse(read(store(tmp_path / name, new_store, many, result_of), ["small"]))
        for name, result_of in (("exact", result), ("older", rounded))
    )
    for exact_block, older_block in zip(exact.blocks, older.blocks, strict=True):
        assert [str(c.verdict) for c in exact_block.comparisons] == [
            str(c.verdict) for c in older_block.comparisons
        ]
        assert exact_block.ranking is not None
        assert older_block.ranking is not None
        assert list(exact_block.ranking.ranks.mean) == list(older_block.ranking.ranks.mean)
