"""Looks of a sequential experiment: who stops, what runs next, and what a report shows meanwhile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tensorbench.checks.verify.plans import examine_plan
from tensorbench.methods import UserError
from tensorbench.plan.rows import Plan
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Row
from tensorbench.reports.analysis import analyse
from tensorbench.reports.answers import in_words
from tensorbench.reports.reading import read
from tensorbench.reports.selection import Selection
from tensorbench.store.opening import open_results

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


def test_a_look_stops_methods_with_a_verdict(stored: Stored) -> None:
    (every,) = read(stored(ran_until({}), sequential()), [NAME]).experiments
    assert [look.after for look in every.looks] == LOOKS
    assert [{method for method, _ in look.stopped} for look in every.looks] == [
        set(),
        {"TensLoRA att"},
        {"LoRA", "TensLoRA qkv_depth"},
    ]
    assert [look.last for look in every.looks] == [False, False, True]
    # Its later trials, which ran in spite of the stop, are no part of the experiment.
    trials = {row.title: len(row.trials) for row in every.rows if row.studies}
    assert trials == {"LoRA": 32, "TensLoRA att": 20, "TensLoRA qkv_depth": 32}


def test_decisions_follow_from_the_trials_up_to_their_look(stored: Stored) -> None:
    (every,) = read(stored(ran_until({}), sequential()), [NAME]).experiments
    methods = [row.title for row in every.rows if row.studies]
    (early,) = read(stored(ran_until(dict.fromkeys(methods, 5)), sequential()), [NAME]).experiments
    assert early.looks == every.looks[:2]
    assert (early.looked, early.lost) == (5, {})


def test_a_margin_is_part_of_the_plan(stored: Stored) -> None:
    results = read(stored(ran_until({}), sequential(margin=5, stop="all")), [NAME])
    (block,) = analyse(results).blocks
    assert block.threshold == pytest.approx(0.05)
    assert block.k == 4
    with pytest.raises(UserError, match="margin"):
        analyse(results, threshold=0.02)


def test_studies_after_the_last_look_are_not_compared(stored: Stored) -> None:
    uri = stored(ran_until({"LoRA": 4, "TensLoRA att": 2, "TensLoRA qkv_depth": 4}), sequential())
    results = read(uri, [NAME])
    (experiment,) = results.experiments
    assert (experiment.looked, experiment.looks) == (0, ())
    assert experiment.waiting == {"TensLoRA att": 4}
    assert analyse(results).blocks == ()


def test_a_part_keeps_the_intervals_that_were_registered(stored: Stored) -> None:
    uri = stored(ran_until({}), sequential())
    (whole,) = analyse(read(uri, [NAME])).blocks
    (part,) = analyse(read(uri, [NAME], Selection(methods=["LoRA", "TensLoRA qkv_depth"]))).blocks
    kept = {entrant.method: entrant.differences[part.k] for entrant in whole.claims}
    (entrant,) = part.claims
    assert entrant.differences[part.k].interval == kept[entrant.method].interval
    assert "registered" not in in_words(entrant.differences[part.k].verdict, "")


def test_other_comparisons_say_that_they_were_not_registered(stored: Stored) -> None:
    uri = stored(ran_until({}), sequential())
    (block,) = analyse(read(uri, [NAME], Selection(reference="TensLoRA att"))).blocks
    verdicts = [entrant.differences[block.k].verdict for entrant in block.claims]
    assert len(verdicts) == 2
    assert all("not registered" in in_words(verdict, "") for verdict in verdicts)


@pytest.mark.parametrize(("last", "beyond"), [(5, 0), (8, 12)])
def test_trials_beyond_a_stop_are_found(stored: Stored, last: int, beyond: int) -> None:
    uri = stored(ran_until({"TensLoRA att": last}), sequential())
    (source,) = open_results(uri, [NAME])
    settled = {record.trial_id for record in source.records()}
    results = [fault for fault in examine_plan(source, None, settled).faults if "looks" in fault.what]
    assert [fault.stored for fault in results] == [f"{beyond} results of TensLoRA att"] * bool(beyond)
