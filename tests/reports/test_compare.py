"""Two experiments: what changed, what moved, what only one of them has."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bench.plan.rows import Row
from bench.plan.trial import Trial
from methods import UserError
from reports.compare import Comparison, Move, compare

from ..stored import Result, write
from .made_up import SMALL, Call, NewStore, plan_of, result

FIVE = SMALL | {"seeds": [0, 1, 2, 3, 4], "training": {"lr": 1e-3}}


def shifted(by: float) -> Callable[[Trial, Row], Result | None]:
    """As `result`, but TensLoRA scores that much more, and a little seed noise."""

    def told(trial: Trial, row: Row) -> Result | None:
        made = result(trial, row)
        assert made is not None
        noise = 0.001 * ((trial.seed * 7) % 3 - 1)
        return dataclasses.replace(made, score=made.score + noise + by * ("TensLoRA" in row.title))

    return told


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> str:
    """Two experiments of five seeds; read only."""
    made = new_store(tmp_path_factory.mktemp("compare"))
    write(made, plan_of(**FIVE | {"name": "before"}), result)
    more = {"name": "after", "training": {"lr": 2e-3}, "methods": [*FIVE["methods"], "lotr"]}
    write(made, plan_of(**FIVE | more), shifted(0.05))
    return made


def moves(found: Comparison) -> dict[str, Move]:
    return {move.method: move for move in found.moves}


def test_a_cell_moves_only_beyond_noise(uri: str) -> None:
    found = compare((uri, "before"), (uri, "after"))
    assert {method: move.verdict for method, move in moves(found).items()} == {
        "LoRA": "within noise",
        "TensLoRA att": "moved",
    }
    moved = found.moves[0]
    assert moved.difference == pytest.approx(0.05, abs=1e-3)
    assert moved.interval is not None
    assert moved.interval[0] < 0.05 < moved.interval[1]
    assert moved.paired
    assert [len(runs) for runs in moved.runs] == [5, 5]


def test_p_is_students_by_seed_and_corrected(uri: str) -> None:
    noise = np.array([0.001 * ((seed * 7) % 3 - 1) for seed in range(5)])
    found = moves(compare((uri, "before"), (uri, "after")))
    lora = found["LoRA"]
    assert lora.p == pytest.approx(stats.ttest_1samp(noise, 0).pvalue)
    assert lora.p_holm == pytest.approx(lora.p)
    moved = found["TensLoRA att"]
    assert moved.p is not None
    assert moved.p_holm == pytest.approx(2 * moved.p)


def test_what_changed_and_what_only_one_has_is_named(uri: str) -> None:
    found = compare((uri, "before"), (uri, "after"))
    assert [(c.what, c.before, c.after, c.cells) for c in found.changes] == [
        ("training lr", "0.001", "0.002", 2),
        ("training head_lr", "0.001", "0.002", 2),
    ]
    assert found.only == ([], ["LoTR · isorank 2 · digits · tiny-random-vit"])


def test_other_seeds_are_compared_without_pairs(tmp_path: Path, new_store: NewStore) -> None:
    made = new_store(tmp_path)
    write(made, plan_of(**FIVE | {"name": "before"}), result)
    write(made, plan_of(**FIVE | {"name": "after", "seeds": [5, 6, 7]}), shifted(0.0))
    lora = moves(compare((made, "before"), (made, "after")))["LoRA"]
    assert (lora.paired, lora.seeds) == (False, (5, 3))
    assert lora.p is not None


def test_too_few_seeds_and_the_same_trials_are_said(tmp_path: Path, new_store: NewStore) -> None:
    made = new_store(tmp_path)
    write(made, plan_of(**SMALL | {"name": "a", "seeds": [0]}), result)
    write(made, plan_of(**SMALL | {"name": "b", "seeds": [0]}), result)
    write(made, plan_of(**SMALL | {"name": "c", "seeds": [1]}), result)
    assert {move.verdict for move in compare((made, "a"), (made, "b")).moves} == {"same trials"}
    assert {move.verdict for move in compare((made, "a"), (made, "c")).moves} == {"too little data"}


@pytest.mark.parametrize(
    ("by", "verdict", "interval"), [(0.0, "within noise", (0.0, 0.0)), (0.05, "too little data", None)]
)
def test_differences_without_spread_tell_nothing_of_noise(
    by: float, verdict: str, interval: Any, tmp_path: Path, new_store: NewStore
) -> None:
    def told(trial: Trial, row: Row) -> Result | None:
        made = result(trial, row)
        return made and dataclasses.replace(made, score=made.score + by)

    made = new_store(tmp_path)
    write(made, plan_of(**FIVE | {"name": "before"}), result)
    write(made, plan_of(**FIVE | {"name": "after", "training": {"lr": 2e-3}}), told)
    for move in compare((made, "before"), (made, "after")).moves:
        assert (move.verdict, move.interval) == (verdict, interval)
        assert move.difference == pytest.approx(by)


def test_the_command_shows_it_and_speaks_json(call: Call, uri: str) -> None:
    shown = call("compare", "before", "after", "--store", uri)
    assert shown.code == 0
    assert "1 of 2 common cells moved beyond noise (2 could be tested)." in shown.out
    assert "Only in after: LoTR" in shown.out
    content = json.loads(call("compare", "before", "after", "--store", uri, "--json").out)
    assert content["moves"][0]["verdict"] == "moved"
    assert len(content["moves"][0]["runs"][0][0]) == 32


def test_without_common_cells_nothing_is_said_to_be_equal(
    call: Call, tmp_path: Path, new_store: NewStore
) -> None:
    made = new_store(tmp_path)
    for name, method in (("a", "lora"), ("b", "lotr"), ("c", "lora")):
        write(made, plan_of(**SMALL | {"name": name, "methods": [method]}), result)
    equal = "Neither configuration nor surroundings differ."
    shown = call("compare", "a", "b", "--store", made).out
    assert ("no cell in common" in shown, equal in shown) == (True, False)
    assert equal in call("compare", "a", "c", "--store", made).out


def test_what_cannot_be_compared_is_refused(call: Call, uri: str) -> None:
    with pytest.raises(UserError, match="compared with itself"):
        compare((uri, "before"), (uri, "before"))
    ended = call("compare", "before", "afetr", "--store", uri)
    assert ended.code == 2
    assert "did you mean 'after'?" in ended.err
