"""Tests several drivers on one experiment: their claims, their deaths, and what dead drivers leave behind."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tensorbench.execution.driver import failures
from tensorbench.records.record import Record, failed
from tensorbench.records.words import Status, Tag
from tensorbench.store import claims
from tensorbench.store.claims import SIGN, Claims, find_leftovers
from tensorbench.store.store import Store

from ...stored import begun
from ..toy_runs import run_inline
from ..toy_suites import plan
from .drivers import ELSEWHERE, dead_owner, names, opened, signs, stored, take


def test_only_one_of_several_drivers_claims_a_trial(store: Store) -> None:
    drivers = [opened(store) for _ in range(4)]
    looked = [(driver, driver.taken(), driver.living()) for driver in drivers]
    for trial in ("a", "b", "c"):
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(lambda look: look[0].take(trial, look[1], look[2]), looked))  # noqa: B023
        assert sum(got) == 1, trial
    assert len(names(store)) == 3


def test_a_claim_holds_against_others_and_again_for_its_driver(store: Store) -> None:
    first, other = opened(store), opened(store)
    assert take(first)
    assert take(first)
    assert not take(other)
    assert take(other, "u")


def test_claims_on_several_pages_are_all_known_and_settled(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "PAGE", 1)
    own_claims = opened(store)
    assert all(take(own_claims, trial) for trial in ("a", "ab", "b"))
    assert own_claims.taken() == dict.fromkeys(("a", "ab", "b"), (1, own_claims.driver))
    own_claims.settle("a")
    assert set(own_claims.taken()) == {"ab", "b"}


def test_a_claim_that_is_settled_in_the_moment_it_is_contested_is_not_taken(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, late = opened(store), opened(store)
    looked = late.taken(), late.living()
    assert take(first)
    create = late._client.create_registered_model

    def contested(*arguments: Any) -> Any:
        try:
            return create(*arguments)
        finally:
            first.settle("t")

    monkeypatch.setattr(late._client, "create_registered_model", contested)
    assert not late.take("t", *looked)
    monkeypatch.undo()
    assert take(late)


def test_a_claim_of_a_driver_that_died_here_is_followed_by_the_next_attempt(store: Store) -> None:
    gone, next_one, last = opened(store, dead_owner()), opened(store), opened(store)
    assert take(gone)
    taken, living = last.taken(), last.living()
    assert take(next_one)
    # A driver that looked before the new claim is too late; if it looks again, it sees the claim.
    assert not last.take("t", taken, living)
    assert not take(last)
    assert sorted(name.rpartition(".")[2] for name in names(store)) == ["1", "2"]


def test_a_driver_elsewhere_is_dead_when_it_has_given_no_sign_for_long(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, here = opened(store, ELSEWHERE), opened(store)
    assert take(far)
    clock = [1000.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: clock[0])
    assert not take(here)
    clock[0] += claims.EXPIRY - 1
    assert not take(here)
    # A sign of life restarts the timeout.
    store.client.set_experiment_tag(
        store.experiment.experiment_id, SIGN + far.driver, json.dumps({"owner": ELSEWHERE, "beat": 2})
    )
    clock[0] += 2
    assert not take(here)
    clock[0] += claims.EXPIRY + 1
    assert take(here)


def test_claims_expire_only_after_time_for_a_sign_since_the_store_is_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, here = opened(store, ELSEWHERE), Claims(store)
    clock, away = [1000.0], [False]
    real = MlflowClient.set_experiment_tag

    def write(*arguments: Any) -> Any:
        if away[0]:
            raise MlflowException("away")
        return real(*arguments)

    def until(online: bool) -> None:
        while store.online is not online:
            time.sleep(0.01)

    monkeypatch.setattr(claims, "PROBE", 0.01)
    monkeypatch.setattr(claims.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(MlflowClient, "set_experiment_tag", write)
    here.open()
    assert far.driver in here.living()
    away[0] = True
    clock[0] += claims.EXPIRY * 2
    until(online=False)
    away[0] = False
    until(online=True)
    assert far.driver in here.living()
    clock[0] += claims.EXPIRY
    assert far.driver not in here.living()
    here.close()


def test_a_run_that_its_driver_ends_while_another_one_looks_stays_as_it_ended(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(methods=["head_only"])
    ending, here = opened(store, dead_owner()), Claims(store)
    rows = list(made.rows)
    run = begun(store, made.trials[0], rows, tags={Tag.DRIVER: ending.driver})
    real, looked = store.running, []

    def running(*arguments: Any) -> list[Record]:
        run_seen = real(*arguments)
        if not looked:
            run.end(Record(status=Status.FINISHED, metrics={"score": 1.0}))
        looked.append(run_seen)
        return run_seen

    monkeypatch.setattr(store, "running", running)
    assert here.close_stale() == 0
    assert [record.run_id for record in looked[0]] == [run.run_id]
    assert store.client.get_run(run.run_id).info.status == "FINISHED"


def test_a_claim_whose_answer_was_lost_is_found_to_be_ones_own(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = opened(store), opened(store)
    real = MlflowClient.create_registered_model

    def twice(self: MlflowClient, *arguments: object) -> object:
        real(self, *arguments)
        return real(self, *arguments)

    monkeypatch.setattr(MlflowClient, "create_registered_model", twice)
    assert take(first)
    assert not take(other)


def test_a_failure_by_another_driver_stays_unless_a_retry_is_requested(store: Store) -> None:
    made = plan(methods=["head_only"], training={"batch_size": 16, "steps": 1})
    (trial,) = made.trials
    first = begun(store, trial, made.rows)
    first.end(failed("error", "as it prepared", ""))
    failed_runs = failures(store.records())
    assert failed_runs == {trial.id: first.run_id}
    later = begun(store, trial, made.rows)
    later.end(failed("error", "once more, by another driver", ""))
    kinds = []
    for retried in ({}, failed_runs, failures(store.records())):
        kinds.append(run_inline(store, made, retried=retried)[-1].kind)
    assert kinds == ["elsewhere", "elsewhere", "finished"]


@pytest.mark.parametrize("retries", [False, True])
def test_what_another_driver_settled_meanwhile_is_dropped_without_a_claim_unless_it_is_retried(
    store: Store, monkeypatch: pytest.MonkeyPatch, retries: bool
) -> None:
    made = plan(methods=["head_only"], seeds=[0, 1, 2], training={"batch_size": 16, "steps": 1})
    other, read_before = opened(store), store.records()
    for trial, ending in zip(
        made.trials,
        (Record(status=Status.FINISHED, metrics={"score": 1.0}), failed("error", "it broke", "")),
        strict=False,
    ):
        begun(store, trial, made.rows, tags={Tag.DRIVER: other.driver}).end(ending)
    claimed: list[str] = []
    real = Claims.take

    def take(self: Claims, trial: str, *arguments: Any) -> bool:
        claimed.append(trial)
        return real(self, trial, *arguments)

    monkeypatch.setattr(Claims, "take", take)
    retried = failures(store.records()) if retries else {}
    events = run_inline(store, made, retried=retried, records=read_before)
    dropped = [event.trial.id for event in events if event.kind == "elsewhere"]
    assert dropped == [trial.id for trial in made.trials if trial.id not in claimed]
    assert len(dropped) == (1 if retries else 2)
    assert [event.kind for event in events].count("finished") == len(claimed)
    assert names(store) == []


# --- what is left over ---


def test_a_claim_on_a_failed_trial_stays_while_another_driver_may_be_trying_it_again(store: Store) -> None:
    gone, live = opened(store, dead_owner()), opened(store)
    trial = stored(store, "failed")
    assert take(gone, trial)
    assert live.left() == {trial: 1}
    opened(store)
    assert live.left() == {}
    assert take(live, trial)
    assert live.left() == {}


def test_a_driver_that_begins_while_another_sweeps_keeps_its_sign(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeping = opened(store)
    real, begun = MlflowClient.get_experiment, []

    def slow(self: MlflowClient, experiment: str) -> Any:
        answer = real(self, experiment)
        if not begun:
            begun.append(None)
            begun[0] = opened(store)
        return answer

    monkeypatch.setattr(MlflowClient, "get_experiment", slow)
    assert sweeping.silent() == set()
    assert len(signs(store)) == 2


def test_leftovers_are_listed_and_deleted_on_request(store: Store, call: Callable[..., Any]) -> None:
    gone = opened(store, dead_owner())
    trial = stored(store, "failed")
    for taken in (trial, "open"):
        assert take(gone, taken)
    run = store.begin_suite(plan(), gone.driver)
    (store.outbox / "refused" / "r").mkdir(parents=True)
    listed = call("verify", "--leftovers", "--store", store.uri)
    assert listed.code == 0, listed.err
    for line in (
        f"claims on trial {trial}",
        "claims on trial open",
        f"open run {run}",
        gone.driver,
        "refused/r",
    ):
        assert line in listed.out
    assert re.search(r"\b4 .*--delete", listed.out)
    assert (len(names(store)), len(signs(store)), len(store.running())) == (2, 1, 1)
    assert "Deleted or closed 4" in call("verify", "--leftovers", "toy", "--store", store.uri, "--delete").out
    assert (names(store), signs(store), store.running()) == ([], [], [])
    assert "Nothing to delete or close" in call("verify", "--leftovers", "--store", store.uri).out
    assert (store.outbox / "refused" / "r").exists()


def test_a_claim_stays_that_is_made_while_leftovers_are_deleted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert take(opened(store, dead_owner()), "a")
    real, late = Claims.close_stale, list[Claims]()

    def slow(self: Claims) -> int:
        if not late:
            late.append(opened(store))
            assert take(late[0], "a")
        return real(self)

    monkeypatch.setattr(Claims, "close_stale", slow)
    (left,) = find_leftovers("toy", store=store.uri, delete=True)
    assert left.claims == ["a"]
    assert late[0].taken() == {"a": (2, late[0].driver)}
    assert len(names(store)) == 1


def test_gc_leaves_a_driver_elsewhere_alone_that_gives_a_sign(
    store: Store, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    far, gone = opened(store, ELSEWHERE), opened(store, "elsewhere:2:0")
    assert take(far, "a")
    assert take(gone, "b")
    clock = [1000.0]

    def pass_time(seconds: float) -> None:
        clock[0] += seconds
        sign = json.dumps({"owner": ELSEWHERE, "beat": clock[0]})
        store.client.set_experiment_tag(store.experiment_id, SIGN + far.driver, sign)

    monkeypatch.setattr(claims, "LOOK", claims.EXPIRY / 2)
    monkeypatch.setattr(claims.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(claims.time, "sleep", pass_time)
    ended = call("verify", "--leftovers", "--store", store.uri, "--delete")
    assert "2 driver(s)" in ended.err
    assert signs(store) == [far.driver]
    assert len(names(store)) == 2
