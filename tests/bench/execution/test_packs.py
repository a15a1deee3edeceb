"""Packs of trials, as the driver makes them and as the store has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bench.execution.inline
import bench.run
from bench.execution import driver
from bench.execution.driver import execute
from bench.execution.inline import Inline
from bench.execution.perform import Report, ended
from bench.execution.retries import RETRIES, Retry
from bench.execution.session import session
from bench.execution.watch import Limits, overdue
from bench.plan.trial import Trial
from bench.run import Audience, run_suite
from bench.store.store import Store
from bench.training.saving import Saving
from bench.wire.trial import Ending, lost
from bench.wire.words import Measure, Tag
from methods import UserError

from ..toy_runs import SHORT
from ..toy_suites import VISION, plan, suite, write

NewStore = Callable[[Path], str]


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The trials of every pack, by method. Trials do not run: those of a pack are lost, others pruned."""
    given: list[list[str]] = []

    def perform_all(trials: Sequence[Trial], resources: Any, worker: str, report: Report, *_: Any) -> None:
        given.append([f"{trial.method['method']} {trial.seed}" for trial in trials])
        for trial in trials:
            report(ended(trial, worker, lost("its node died") if len(trials) > 1 else Ending("pruned")))

    monkeypatch.setattr(driver, "LOOK", 0.0)
    monkeypatch.setitem(RETRIES, "lost", Retry(times=1, wait=0.0, growth=1.0))
    monkeypatch.setattr(bench.execution.inline, "perform_all", perform_all)
    return given


@pytest.mark.parametrize(
    ("slots", "expected"), [(1, [["lora 0", "lora 1", "lotr 0"]]), (2, [["lora 0", "lora 1"]]), (6, [])]
)
def test_no_worker_goes_without_for_a_larger_pack_and_trials_of_a_lost_one_run_again_alone(
    slots: int, expected: list[list[str]], packs: list[list[str]], tmp_path: Path, new_store: NewStore
) -> None:
    compiled = {"method": "fact_tt", "training": {"compile": True}}
    made = plan(methods=["lora", compiled, "lotr"], seeds=[0, 1], training=SHORT)
    chosen = [trial for trial in made.trials if trial.seed == 0 or trial.method["method"] == "lora"]
    with session(Store.create(new_store(tmp_path), "toy")) as at_work, Inline("cpu") as place:
        place.slots = slots
        execute(made, chosen, at_work, place, lambda event: None, pack=3)
    together = [pack for pack in packs if len(pack) > 1]
    # What compiles is in none of them.
    assert together == expected
    assert sum(map(len, packs)) == len(chosen) + sum(map(len, together))


def test_a_pack_has_the_time_of_all_its_trials_and_none_of_them_is_blamed() -> None:
    made = plan(seeds=[0, 1])
    assert Limits(7.0, made, []).of_all(made.trials) == 14.0
    multiple = Limits("5x", made, [])
    took = Ending("finished", {Measure.SECONDS: 100.0, Measure.STEPS: 1.0}, tags={Tag.PACKED: "2"})
    multiple.learn(made.trials[0], took)
    assert multiple.of_all(made.trials) is None
    multiple.learn(made.trials[0], replace(took, tags={}))
    assert multiple.of_all(made.trials) == 2 * 5 * 8 * 100.0
    assert (overdue(7.0, 1).status, overdue(14.0, 2).status) == ("failed", "lost")


def test_packed_trials_have_their_ids_and_say_that_they_were_packed(
    tmp_path: Path, new_store: NewStore, call: Callable[..., Any]
) -> None:
    rows: list[Any] = ["lora", "head_only", {"method": "lora", "scale": 2.0}]
    changes: dict[str, Any] = {"methods": rows, "training": SHORT}
    file, uri = write(tmp_path, VISION, **changes), new_store(tmp_path)
    run = call("run", file, "--store", uri, "--pack-trials", "2")
    assert run.code == 0, run.err
    records = Store.existing(uri, "toy").records()
    assert {record.trial_id for record in records} == {trial.id for trial in plan(**changes).trials}
    assert sorted(record.provenance.get("packed", "") for record in records) == ["", "2", "2"]


def test_what_does_not_go_with_packs_is_refused_or_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--pack-trials 0: accepted are 1 and more"):
        run_suite(suite(), pack_trials=0)
    with pytest.raises(UserError, match="--pack-trials takes more memory, and so does not go with --micro-b"):
        run_suite(suite(), pack_trials=2, saving=Saving(micro_batch=4))
    notes: list[str] = []
    audience = Audience()
    monkeypatch.setattr(audience, "note", notes.append)
    trials = plan(methods=["lora", {"method": "lotr", "training": {"compile": True}}]).trials
    bench.run._note_alone(trials, audience)
    assert notes == ["1 of 2 trials run alone in spite of --pack-trials: its recipe has compile: true."]
