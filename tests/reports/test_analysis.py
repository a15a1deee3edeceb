"""Comparisons, ranks, groups and aggregates of stored scores, and where they say nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from bench.plan.rows import Row
from bench.plan.trial import Trial
from reports import resampling
from reports.analysis import Analysis, Block, analyse
from reports.comparisons import verdict as verdict_of
from reports.reading import read
from reports.statistics import Effect

from ..stored import Result, write
from .made_up import EXAMPLES, SMALL, NewStore, plan_of, result, store


def block(analysis: Analysis, budget: str) -> Block:
    return next(block for block in analysis.blocks if block.budget == budget)


def test_methods_with_lost_seeds_are_in_no_comparison_and_named(analysis: Analysis) -> None:
    isorank, isoparameters = block(analysis, "isorank 2"), block(analysis, "isoparameters 2")
    assert isorank.left_out == {"LoTR": "4 of 5 seeds on movie-sentiment · tiny-random-bert"}
    assert isoparameters.left_out == {"TensLoRA depth": "4 of 5 seeds on digits · tiny-random-vit"}
    assert "LoTR" not in {c.method for c in isorank.comparisons} | set(isorank.methods)
    assert any("incomplete cells" in note for note in isorank.notes)


def test_a_setting_that_has_not_been_run_keeps_nobody_out(tmp_path: Path, new_store: NewStore) -> None:
    plan = plan_of(**SMALL | {"tasks": ["digits", "textile"]})
    uri = store(tmp_path, new_store, plan, lambda t, row: result(t, row) if row.task == "digits" else None)
    only = block(analyse(read(uri, ["small"])), "isorank 2")
    assert only.settings == (("digits", "tiny-random-vit"),)
    assert [c.method for c in only.comparisons] == ["TensLoRA att"]
    assert any("No method is complete on textile · tiny-random-vit" in note for note in only.notes)


def test_what_differs_and_what_does_not_is_said(analysis: Analysis) -> None:
    found = {c.method: c for c in block(analysis, "isorank 2").comparisons}
    # Edges of +8, −1 and −9 of 200 examples; seeds are paired, so that their shared noise is gone.
    assert found["TensLoRA att"].verdict == "better"
    assert found["TensLoRA att"].effect.difference == pytest.approx(0.04, abs=0.004)
    assert found["TensLoRA depth"].verdict == "worse"
    assert found["TensLoRA qkv"].verdict in ("practically equal", "worse, by less than matters")
    assert found["TensLoRA att"].effect.pairs == 15
    assert found["TensLoRA att"].p_holm == pytest.approx(3 * 2 / 2**15)
    assert "LoRA" not in found


@pytest.mark.parametrize(
    ("difference", "half", "p", "methods", "verdict"),
    [
        (0.02, 0.005, 0.001, 1, "better"),
        (-0.02, 0.005, 0.001, 1, "worse"),
        (0.005, 0.002, 0.001, 1, "better, by less than matters"),
        (0.002, 0.004, 0.3, 1, "practically equal"),
        (0.02, 0.05, 0.3, 1, "not separable"),
        # Of two methods the interval is that of 97.5%.
        (0.002, 0.0075, 0.3, 1, "practically equal"),
        (0.002, 0.0075, 0.3, 2, "not separable"),
        # With 4 pairs nothing can fall below .125, with 8 and 20 methods nothing below .15.
        (0.02, 0.005, 0.125, 1, "too little data"),
        (0.02, 0.005, 0.0078, 20, "too little data"),
    ],
)
def test_verdicts(difference: float, half: float, p: float, methods: int, verdict: str) -> None:
    made = Effect(
        settings=1,
        pairs=8,
        difference=difference,
        interval=(difference - half, difference + half),
        error=half / 2.364624,
        freedom=7,
        g=None,
        g_interval=None,
        p=p,
        smallest_p=0.125 if p == 0.125 else 0.0078,
    )
    assert verdict_of(made, p, methods, 0.01) == verdict


def test_baselines_are_compared_with_lora_of_the_first_budget(analysis: Analysis) -> None:
    own = block(analysis, "own size")
    assert own.reference is not None
    assert (own.reference.method, own.reference.budget) == ("LoRA", "isorank 2")
    assert {c.method: c.verdict for c in own.comparisons}["head only"] == "worse"


def test_groups_and_ranks_follow_the_scores(analysis: Analysis) -> None:
    isorank = block(analysis, "isorank 2")
    assert isorank.methods == ("TensLoRA att", "LoRA", "TensLoRA qkv", "TensLoRA depth")
    assert isorank.ranking is not None
    letters = isorank.ranking.letters
    assert letters is not None
    assert not set(letters[0]) & set(letters[1])
    assert set(letters[1]) & set(letters[2])
    assert isorank.ranking.ranks.mean[0] == 1


def test_normalised_scores_use_head_only_and_full(analysis: Analysis) -> None:
    own = block(analysis, "own size").aggregates
    assert own["head only"].mean == pytest.approx(0)
    full = next(value for name, value in own.items() if name.startswith("full"))
    assert full.mean == pytest.approx(1)
    assert 0.5 < block(analysis, "isorank 2").aggregates["LoRA"].mean < 1


def test_test_examples_are_resampled_with_the_stored_predictions(analysis: Analysis) -> None:
    isorank = block(analysis, "isorank 2")
    assert len(isorank.resampled) == 9
    one = next(r for r in isorank.resampled if analysis.study.all_cells[r.cell].method == "TensLoRA att")
    assert (one.seeds, one.examples) == (5, EXAMPLES)
    means = [analysis.study.cells.at[c, "mean"] for c in (one.cell, one.reference_cell)]
    assert one.difference == pytest.approx(means[0] - means[1])
    assert one.interval[0] < one.difference < one.interval[1]


def test_predictions_beyond_the_limit_are_left_out_and_that_is_told(
    analysis: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling, "MOST_PREDICTIONS", 20)
    comparisons = [block.comparisons for block in analysis.blocks]
    limited, notes = resampling.resample(analysis.study, comparisons)
    assert 0 < sum(map(len, limited)) < 20
    assert list(limited[0]) == list(analysis.blocks[0].resampled[: len(limited[0])])
    assert any("reads the predictions of 20 runs at most" in note for note in notes)


def test_too_little_data_is_said_instead_of_a_claim(tmp_path: Path, new_store: NewStore) -> None:
    found = analyse(read(store(tmp_path, new_store), ["small"]))
    only = block(found, "isorank 2")
    assert [c.verdict for c in only.comparisons] == ["too little data"]
    assert only.ranking is not None
    assert only.ranking.letters is None
    assert any("Too little data for a claim against LoRA: 2 seed pairs" in note for note in only.notes)
    assert any("Too little data to tell any two methods apart" in note for note in only.rank_notes)
    assert any("2 seeds per cell at most" in note for note in found.notes)
    assert any("No normalised score" in note for note in only.rank_notes)


def test_scores_that_were_stored_in_float32_are_the_same_scores(tmp_path: Path, new_store: NewStore) -> None:
    def rounded(trial: Trial, row: Row) -> Result | None:
        made = result(trial, row)
        return made and dataclasses.replace(made, score=float(np.float32(made.score)))

    many = plan_of(**SMALL | {"seeds": [0, 1, 2, 3, 4]})
    exact, older = (
        analyse(read(store(tmp_path / name, new_store, many, told), ["small"]))
        for name, told in (("exact", result), ("older", rounded))
    )
    for one, other in zip(exact.blocks, older.blocks, strict=True):
        assert [c.p_holm for c in one.comparisons] == [c.p_holm for c in other.comparisons]
        assert one.ranking is not None
        assert other.ranking is not None
        assert list(one.ranking.ranks.mean) == list(other.ranking.ranks.mean)


def test_ranks_of_fewer_seeds_than_the_means_say_so(tmp_path: Path, new_store: NewStore) -> None:
    uri = store(tmp_path, new_store, plan_of(**SMALL | {"seeds": [0, 1, 2, 3], "methods": ["lora"]}))
    write(uri, plan_of(**SMALL | {"name": "other", "methods": ["head_only", "lotr"]}), result)
    of_both = block(analyse(read(uri, ["small", "other"])), "isorank 2")
    assert any("share 2 of up to 4 seeds" in note for note in of_both.rank_notes)
    alone = block(analyse(read(uri, ["small"])), "isorank 2")
    assert not any("share" in note for note in alone.rank_notes)
