"""Tests the floor that a suite without one gets: a head without adapter, which every adapter should beat."""

from __future__ import annotations

from typing import Any

import pytest

from tensorbench.methods import UserError
from tensorbench.plan.rows import Plan

from ..toy_suites import DIGITS, MOVIES, TEXT, VISION, plan

STUDIES: dict[str, Any] = {
    "seeds": [],
    "training": {"batch_size": 16, "epochs": 2},
    "tuning": {"studies": 3, "points": 4},
}
#: A decoder that answers in words, which has no head to fit.
WORDS = {"prompt": "{text} It was", "words": [" bad", " good"]}
DECODER = {"backbones": ["tiny-random-llama"], "tasks": [{**MOVIES, "verbalizer": WORDS}]}


def floored(base: dict[str, Any] = VISION, **changes: Any) -> Plan:
    return plan({key: value for key, value in base.items() if key != "floor"}, **changes)


def floors(made: Plan) -> dict[str, int]:
    """The number of trials of each row without adapter, by its registered name."""
    return {row.family: len(row.trials) for row in made.rows if not row.parameters}


@pytest.mark.parametrize(
    ("base", "changes", "added"),
    [
        (VISION, {}, {"converged_head": 1}),
        (VISION, STUDIES, {"converged_head": 1}),
        (TEXT, DECODER, {"head_only": 1}),
        (TEXT, DECODER | STUDIES, {"head_only": 1}),
    ],
    ids=["seeds", "studies", "a decoder", "studies of a decoder"],
)
def test_a_suite_without_a_floor_gets_a_cheap_one_and_the_plan_says_so(
    base: dict[str, Any], changes: dict[str, Any], added: dict[str, int]
) -> None:
    made = floored(base, **changes)
    assert floors(made) == added
    (note,) = [note for note in made.overview().notes if "a floor" in note]
    assert note.startswith(*added)
    # The trials of the suite's own rows are the same with and without it.
    without = floored(base, **changes, floor="none")
    assert floors(without) == {}
    assert not any("a floor" in note for note in without.overview().notes)
    assert {trial.id for trial in without.trials} < {trial.id for trial in made.trials}


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": ["lora", "head_only"]},
        {"methods": ["lora", "converged_head"]},
        {"search": {"trials": 2}},
    ],
)
def test_a_suite_with_a_floor_or_a_search_of_ranks_gets_none(changes: dict[str, Any]) -> None:
    with_it, without = floored(**changes), floored(**changes, floor="none")
    assert [row.method for row in with_it.rows] == [row.method for row in without.rows]


def test_the_added_floor_takes_no_name_of_another_row() -> None:
    with pytest.raises(UserError, match="'converged head' is what another method is called"):
        floored(methods=[{"method": "lora", "label": "converged head"}])


def test_each_task_has_its_floor() -> None:
    made = floored(tasks=[DIGITS, {"task": "textile", "train_size": 60}], budgets=[{"isorank": 2}])
    assert [row.task for row in made.rows if row.family == "converged_head"] == ["digits", "textile"]
