"""Tests the estimated durations of trials and the order in which trials run."""

from __future__ import annotations

import pytest

from tensorbench.execution.estimate import Pace, longest_first, sizing, step_count, workloads
from tensorbench.plan.suite_rows import TaskRow
from tensorbench.tasks import Task

from ..toy_runs import timed
from ..toy_suites import DIGITS, plan


def test_longest_trials_come_first_by_steps_or_by_what_was_measured() -> None:
    made = plan(
        methods=[
            {"method": "lora", "training": {"steps": 2}},
            {"method": "head_only", "training": {"steps": 9}},
        ],
        training={"batch_size": 16, "steps": 5},
    )
    lora, head = sorted(made.trials, key=lambda trial: trial.method["method"], reverse=True)
    assert longest_first(made, made.trials, []) == [head, lora]
    # In the stored records a step of LoRA took five times as long as one of the head alone.
    records = [timed(row, 50.0 if row.trials[0] == lora.id else 10.0) for row in made.rows]
    assert longest_first(made, made.trials, records) == [lora, head]


def test_steps_are_those_of_the_shares_that_a_suite_asks_for() -> None:
    made = plan(
        tasks=[{"task": "digits", "fractions": [20, 20, 60]}], training={"batch_size": 16, "epochs": 1}
    )
    # A fifth of 1,797 examples in batches of 16, of which the last is smaller.
    assert {step_count(trial) for trial in made.trials} == {23}


def test_trials_on_one_seed_s_split_stay_together() -> None:
    tasks = [{**DIGITS, "split": "per_seed"}]
    methods = ["head_only", "lora", {"method": "tenslora", "variant": "att"}]
    made = plan(tasks=tasks, methods=methods, seeds=[0, 1, 2])
    records = [timed(row, seconds) for row, seconds in zip(made.rows, (10.0, 30.0, 20.0), strict=True)]
    ordered = longest_first(made, made.trials, records)
    assert [trial.seed for trial in ordered] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [trial.method["method"] for trial in ordered] == ["lora", "tenslora", "head_only"] * 3


def test_a_task_is_looked_up_once_whatever_the_number_of_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(methods=["lora", "lotr"], seeds=list(range(20)))
    looked_up, lookup = list[str](), TaskRow.lookup

    def remember(row: TaskRow) -> Task:
        looked_up.append(row.task)
        return lookup(row)

    monkeypatch.setattr(TaskRow, "lookup", remember)
    work = workloads(made)
    assert sizing(((trial, work[trial.id]) for trial in made.trials), Pace(made, (), 1.0))
    # A look at a folder of images lists all of its files.
    assert len(looked_up) == 1
