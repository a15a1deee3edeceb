"""Tests which trials the driver runs again by itself, and when."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

import tensorbench.execution.perform
from tensorbench.execution import driver
from tensorbench.execution.driver import Retries, execute, pending
from tensorbench.execution.inline import Inline
from tensorbench.execution.perform import Event
from tensorbench.execution.session import session
from tensorbench.records.record import Record, lost
from tensorbench.records.words import Status
from tensorbench.store import claims
from tensorbench.store.claims import Claims
from tensorbench.store.connect import StoreError
from tensorbench.store.store import Store

from ..toy_runs import SHORT, run_inline
from ..toy_suites import plan


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replaces the driver's clock by a list, whose only entry is the time in seconds. Tests set it."""
    now = [1000.0]
    monkeypatch.setattr(driver, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    return now


def test_each_retry_waits_longer_up_to_the_last_one(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TIMES", 3), ("WAIT", 2.0), ("GROWTH", 5.0)):
        monkeypatch.setattr(driver, name, value)
    tried = Retries()
    for seconds in (2, 10, 50):
        assert tried.due("a")
        assert tried.another("a")
        clock[0] += seconds - 0.5
        assert (tried.due("a"), tried.due("b")) == (False, True)
        clock[0] += 0.5
    assert not tried.another("a")
    assert tried.another("b")


def test_other_trials_run_while_a_lost_trial_waits_and_three_losses_end_its_retries(
    store: Store, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(seeds=[0, 1], training=SHORT)
    first, second = made.trials
    real = tensorbench.execution.perform.perform
    monkeypatch.setattr(driver, "LOOK", 0.0)
    monkeypatch.setattr(
        tensorbench.execution.perform,
        "perform",
        lambda trial, *rest, **alone: (
            lost("its node died") if trial == first else real(trial, *rest, **alone)
        ),
    )
    events: list[tuple[int, str]] = []

    def notify(event: Event) -> None:
        if event.kind != "progress":
            events.append((event.trial.seed, event.kind))
        if event.kind == "finished":
            clock[0] += 2
        elif events.count((0, "lost")) == 2 and event.kind == "lost":
            clock[0] += 20

    with session(store) as at_work, Inline("cpu") as place:
        execute(made, [first, second], at_work, place, notify)
        # Another driver may retry it immediately.
        assert at_work.claims.taken() == {}
    failing = [(0, "started"), (0, "lost")]
    assert events == [*failing, (1, "started"), (1, "finished"), *failing, *failing]
    assert sorted(record.status for record in store.records()) == ["FINISHED", "KILLED", "KILLED", "KILLED"]
    assert pending(made, store.records()) == [first]


def test_a_lost_trial_keeps_its_claim_while_it_waits_though_its_record_is_sent_late(
    store: Store, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(seeds=[0], training=SHORT)
    happened: list[str] = []
    send, settle, perform = Store.send, Claims.settle, tensorbench.execution.perform.perform

    def once_away(store: Store, record: Record, *rest: Any) -> None:
        if record.status == Status.KILLED and "away" not in happened:
            happened.append("away")
            raise StoreError("the store is away")
        send(store, record, *rest)
        if record.status != Status.RUNNING:
            happened.append(f"sent {record.status}")
        if record.status == Status.KILLED:
            clock[0] += 2

    def noted(held: Claims, trial: str) -> None:
        happened.append("settled")
        settle(held, trial)

    monkeypatch.setattr(driver, "LOOK", 0.0)
    monkeypatch.setattr(claims, "PROBE", 0.01)
    monkeypatch.setattr(Store, "send", once_away)
    monkeypatch.setattr(Claims, "settle", noted)
    monkeypatch.setattr(
        tensorbench.execution.perform,
        "perform",
        lambda *rest, **alone: perform(*rest, **alone) if "away" in happened else lost("its node died"),
    )
    run_inline(store, made)
    assert happened == ["away", "sent KILLED", "sent FINISHED", "settled"]


def test_each_outage_has_the_whole_patience(
    store: Store, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(seeds=[0, 1, 2], training=SHORT)
    send, away = Store.send, set[str]()

    def away_at_each_end(store: Store, record: Record, *rest: Any) -> None:
        if record.status == Status.FINISHED and record.trial_id not in away:
            away.add(record.trial_id)
            raise StoreError("the store is away")
        send(store, record, *rest)
        if record.status == Status.FINISHED:
            clock[0] += driver.PATIENCE + 1

    monkeypatch.setattr(driver, "LOOK", 0.0)
    monkeypatch.setattr(claims, "PROBE", 0.01)
    monkeypatch.setattr(Store, "send", away_at_each_end)
    run_inline(store, made)
    assert len(away) == 3
    assert not pending(made, store.records())
