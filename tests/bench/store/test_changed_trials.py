"""Tests that a start warns if stored trials would run again because of small changes of the suite."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tensorbench.plan.pairs import Part
from tensorbench.plan.rows import Plan
from tensorbench.store import changes
from tensorbench.store.changes import changed_trials
from tensorbench.store.store import Store

from ...messages import naming
from ..toy_runs import SHORT, executed
from ..toy_suites import plan, write

EARLIER = {**SHORT, "clip": 0.5}
METHODS = ["lora", "head_only"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> Store:
    """A store with trials of two methods and two seeds, whose gradients were clipped."""
    store = Store.create(new_store(tmp_path_factory.mktemp("earlier")), "toy")
    executed(store, plan(methods=METHODS, seeds=[0, 1], training=EARLIER))
    return store


def messages(store: Store, made: Plan) -> list[str]:
    return changed_trials(made, made, store, store.records())


def test_trials_that_differ_in_one_field_are_mentioned_with_the_setting_that_keeps_them(store: Store) -> None:
    (message,) = messages(store, plan(methods=METHODS, seeds=[0, 1, 2], training=SHORT))
    assert re.match(naming(4, "recipe.clip"), message)
    assert message.endswith(": clip: 0.5")


def test_fields_that_differ_together_are_one_message(store: Store) -> None:
    (message,) = messages(store, plan(seeds=[1], training={**SHORT, "select": "last"}))
    assert re.match(naming(1, "recipe.clip"), message)
    assert "recipe.select (loss there, last now)" in message


def test_nothing_is_said_and_read_where_nothing_would_run_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a configuration was read")

    monkeypatch.setattr(store, "content", refuse)
    assert messages(store, plan(methods=METHODS, seeds=[0, 1], training=EARLIER)) == []
    # Silent for trials that no similar trial has run.
    assert messages(store, plan(methods=["lotr"], training=SHORT)) == []
    assert messages(store, plan(seeds=[2], training=SHORT)) == []


def test_other_trials_of_one_method_are_no_news(store: Store) -> None:
    changed = {**SHORT, "lr": 0.1, "head_lr": 0.2, "batch_size": 8, "warmup": 0.5}
    assert messages(store, plan(training=changed)) == []


def test_trials_of_the_rest_of_the_suite_are_not_orphans(store: Store) -> None:
    full_plan = plan(training=EARLIER, budgets=[{"isoparameters": 2}, {"isoparameters": 3}])
    part = full_plan.select(Part(budgets=["isoparameters 3"]))
    (message,) = messages(store, part)
    assert "method.rank" in message
    assert changed_trials(full_plan, part, store, store.records()) == []


@pytest.mark.parametrize(("most", "begins"), [(4, "4 finished"), (3, "At least 3 finished")])
def test_a_count_that_stops_before_the_last_stored_trial_says_so(
    store: Store, monkeypatch: pytest.MonkeyPatch, most: int, begins: str
) -> None:
    monkeypatch.setattr(changes, "MOST_READ", most)
    (message,) = messages(store, plan(methods=METHODS, seeds=[0, 1], training=SHORT))
    assert message.startswith(begins)


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_start_and_a_plan_say_so(uri: str, tmp_path: Path, call: Callable[..., Any], command: str) -> None:
    executed(Store.create(uri, "toy"), plan(training=EARLIER))
    ended = call(command, write(tmp_path, training=SHORT), "--store", uri)
    assert ended.code == 0, ended.err
    assert "recipe.clip" in ended.out + ended.err
