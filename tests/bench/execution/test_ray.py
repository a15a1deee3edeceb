"""Ray's actors, one at a time; whole runs and lost nodes are in the stress scenarios."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from bench.execution.perform import Event
from bench.plan.trial import Trial
from bench.training.loop import Pruned

from ..toy_suites import plan

if TYPE_CHECKING:
    from bench.execution.ray import RayCluster

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

TRIAL = plan(training={"batch_size": 16, "steps": 400}).trials[0]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    from bench.execution.ray import RayCluster

    with RayCluster.connect("cpu", workers=1) as made:
        yield made


def run(
    cluster: RayCluster, trial: Trial = TRIAL, listen: Callable[[Event], None] = lambda event: None
) -> list[Event]:
    events: list[Event] = []

    def note(event: Event) -> None:
        events.append(event)
        listen(event)

    cluster.submit(trial)
    deadline = time.monotonic() + 240
    while not (events and events[-1].ending):
        assert time.monotonic() < deadline, events
        cluster.step(note)
    return events


def test_a_prune_is_for_one_run_of_a_trial(cluster: RayCluster) -> None:
    def prune(event: Event) -> None:
        if event.progress is not None:
            raise Pruned

    assert run(cluster, listen=prune)[-1].kind == "pruned"
    assert run(cluster)[-1].kind == "finished"


def test_an_error_outside_of_the_trial_costs_it_and_its_actor(cluster: RayCluster) -> None:
    cluster.device = "cuda:99"
    cluster.stop()
    (event,) = run(cluster)
    assert event.kind == "lost"
    assert event.ending is not None
    assert event.ending.message.startswith(f"its worker ({event.worker}) broke: ")
    assert "CUDA" in event.ending.message or "cuda" in event.ending.message
    # What broke the actor would break its next trial too.
    cluster.device = "cpu"
    assert run(cluster)[-1].kind == "finished"
