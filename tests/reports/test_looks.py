"""Looks of a sequential experiment: who stops, what runs next, and what a report shows meanwhile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tensorbench.methods import UserError
from tensorbench.plan.rows import Plan
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Row
from tensorbench.reports.analysis import analyse
from tensorbench.reports.reading import read

from ..stored import Result
from .conftest import Stored
from .made_up_studies import NAME, ONE_TASK, plan_of, result

LOOKS = [3, 5, 8]


def sequential(**looks: Any) -> Plan:
    tuning = {"studies": 8, "points": 4, "looks": {"after": LOOKS, **looks}}
    methods = ["converged_head", "lora", {"method": "tenslora", "each": {"variant": ["att", "qkv_depth"]}}]
    return plan_of(**ONE_TASK, methods=methods, tuning=tuning)


def ran_until(studies: dict[str, int]) -> Any:
    """Results of the first studies of each method, by its title. Of other methods everything has run."""

    def made(trial: Trial, row: Row) -> Result | None:
        place = row.studies.trials[trial.seed] if row.studies else None
        if place and place.study >= studies.get(row.title, 99):
            return None
        made = result(trial, row)
        return made and replace(made, failure="")

    return made


def test_a_look_stops_methods_with_a_verdict_and_ignores_what_ran_later(stored: Stored) -> None:
    (every,) = read(stored(ran_until({}), sequential()), [NAME]).experiments
    first = every.looks[0]
    assert first.after == 3
    # Four points worse: decided at once.
    stopped = {method for method, _ in first.stopped}
    assert "TensLoRA att" in stopped
    assert every.looks[-1].last
    studies = {row.title: max((p.study for s, p in row.studies.trials.items() if s in row.trials), default=0) + 1 for row in every.rows if row.studies}
    print([str(look) for look in every.looks], studies)
    assert studies["TensLoRA att"] == 3
    # The same decisions follow from the trials up to the first look.
    (early,) = read(stored(ran_until(dict.fromkeys(studies, 3)), sequential()), [NAME]).experiments
    assert early.looks[0] == first


def test_studies_after_the_last_look_are_not_compared(stored: Stored) -> None:
    uri = stored(ran_until({"LoRA": 4, "TensLoRA att": 2, "TensLoRA qkv_depth": 4}), sequential())
    results = read(uri, [NAME])
    (experiment,) = results.experiments
    assert (experiment.looked, experiment.looks) == (0, ())
    assert experiment.waiting == 4
    assert analyse(results).blocks == ()
