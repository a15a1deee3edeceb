"""Tests that the first screen states what can and cannot be claimed, from many and from few results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorbench.plan.rows import Row
from tensorbench.plan.trial import Trial
from tensorbench.reports.analysis import Analysis, analyse
from tensorbench.reports.findings import Claim, findings, limits
from tensorbench.reports.reading import read

from ..messages import naming
from ..stored import Result, write
from . import made_up
from .made_up import SMALL, NewStore, plan_of, result, store


def lines(analysis: Analysis) -> list[Claim]:
    return list(findings(analysis.study, analysis.blocks))


def test_each_budget_has_a_line_and_each_of_its_settings_one(analysis: Analysis) -> None:
    of_budget = [line for line in lines(analysis) if line.block.budget == "isorank 2"]
    assert [line.setting for line in of_budget] == [None, *of_budget[0].block.settings]
    overall, *alone = of_budget
    assert overall.best == "TensLoRA att"
    assert overall.against is not None
    assert overall.against.effect.difference == pytest.approx(0.04, abs=0.005)
    assert re.match(naming("Better than LoRA", 1, 4), overall.claim)
    assert overall.equals == ()
    assert overall.costs is not None
    assert overall.costs.parameters[0] > 0
    # One setting detects less than all of them do.
    for line in alone:
        assert line.finds is not None
        assert overall.finds is not None
        assert line.finds > overall.finds
        assert line.against is not None
        assert line.against.interval is not None


def test_a_claim_driven_by_one_task_names_it(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges = {"digits": 20, "textile": -4}

    def result_of(trial: Trial, row: Row) -> Result | None:
        edge = edges[row.task] if row.title == "TensLoRA att" else 0
        monkeypatch.setitem(made_up.EDGE, row.title, edge)
        return result(trial, row)

    plan = plan_of(**SMALL | {"tasks": list(edges), "seeds": [0, 1, 2]})
    analysis = analyse(read(store(tmp_path, new_store, plan, result_of), ["small"]))
    overall, *alone = lines(analysis)
    assert re.search(r" digits: .* −[12]\.\d\d points\.$", overall.claim)
    assert not any("driven" in line.claim for line in alone)


def test_a_mean_that_one_task_moves_by_more_than_the_threshold_is_said_to_be_even_if_its_sign_stays(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def claim(name: str, edges: dict[str, int]) -> str:
        def result_of(trial: Trial, row: Row) -> Result | None:
            monkeypatch.setitem(
                made_up.EDGE, row.title, edges[row.task] if row.title == "TensLoRA att" else 0
            )
            return result(trial, row)

        plan = plan_of(**SMALL | {"tasks": list(edges), "seeds": [0, 1, 2]})
        return lines(analyse(read(store(tmp_path / name, new_store, plan, result_of), ["small"])))[0].claim

    assert "driven by digits" in claim("moved", {"digits": 20, "textile": 10})
    assert "driven" not in claim("even", {"digits": 11, "textile": 10})


def equal(*_: Any) -> Result:
    return Result(score=0.5)


def shifted(trial: Trial, row: Row) -> Result:
    return Result(score=0.5 + 0.1 * ("TensLoRA" in row.title))


def no_numbers(trial: Trial, row: Row) -> Result:
    numbered = result(trial, row)
    assert numbered is not None
    answers = np.asarray(numbered.answers, dtype=float)
    answers[:50] = np.nan
    return replace(numbered, answers=answers, score=float((answers == numbered.labels).mean()))


@pytest.mark.parametrize(
    ("changes", "result_of", "claim", "limit"),
    [
        ({"seeds": [0]}, result, "Too few seeds (1): no difference", "no difference can be"),
        ({"seeds": [0, 1]}, result, "Too few seeds (2): no difference", "no difference can be"),
        ({}, result, "Better than LoRA by more than 1 point", "nothing can be said of other tasks"),
        ({"methods": SMALL["methods"][1:]}, result, "nothing is compared with it", "One task"),
        ({}, equal, "No difference can be claimed: all methods have the same", "One task"),
        ({}, shifted, "the noise is unknown", "One task"),
        ({}, no_numbers, "Better than LoRA", "Predictions of 6 runs are partly NaN"),
    ],
)
def test_poor_stores_say_what_cannot_be_claimed(
    changes: dict[str, Any], result_of: Any, claim: str, limit: str, tmp_path: Path, new_store: NewStore
) -> None:
    uri = store(tmp_path, new_store, plan_of(**SMALL | {"seeds": [0, 1, 2]} | changes), result_of)
    analysis = analyse(read(uri, ["small"]))
    (line,) = lines(analysis)
    assert claim in line.claim
    assert any(limit in note for note in limits(analysis)), limits(analysis)


def test_experiments_without_a_common_seed_claim_no_difference(tmp_path: Path, new_store: NewStore) -> None:
    uri = new_store(tmp_path)
    lora, tenslora = SMALL["methods"]
    parts: Sequence[dict[str, Any]] = (
        {"name": "one", "methods": [lora], "seeds": [0, 1]},
        {"name": "other", "methods": [tenslora], "seeds": [5, 6]},
    )
    for part in parts:
        write(uri, plan_of(**SMALL | part), result)
    (line,) = lines(analyse(read(uri, ["one", "other"])))
    assert line.best == "TensLoRA att"
    assert line.against is None
    assert "no finished seed" in line.claim
