"""What `tensorbench verify --leftovers` finds and cleans."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.store import claims
from bench.store.claims import SIGN
from bench.store.store import Store

from ..toy_suites import plan
from .drivers import ELSEWHERE, dead_owner, names, opened, signs, stored, take


@pytest.fixture
def store(tmp_path: Path, new_store: Callable[[Path], str]) -> Store:
    return Store.create(new_store(tmp_path), "toy")


def test_gc_lists_what_is_left_over_and_cleans_it_when_asked(store: Store, call: Callable[..., Any]) -> None:
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
    assert "4 to be deleted or closed: with --delete" in listed.out
    assert (len(names(store)), len(signs(store)), len(store.running())) == (2, 1, 1)
    assert "Deleted or closed 4" in call("verify", "--leftovers", "toy", "--store", store.uri, "--delete").out
    assert (names(store), signs(store), store.running()) == ([], [], [])
    assert "Nothing is left over" in call("verify", "--leftovers", "--store", store.uri).out
    assert (store.outbox / "refused" / "r").exists()


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
    assert "waiting for a sign of life of 2 driver(s)" in ended.err
    assert signs(store) == [far.driver]
    assert len(names(store)) == 2
