"""Tests the executor `ray` on one node. The stress scenarios test whole runs and lost nodes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tensorbench.execution import make_executor
from tensorbench.execution.driver import execute
from tensorbench.execution.perform import Event
from tensorbench.execution.place import Place
from tensorbench.execution.session import session
from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.words import Artifact
from tensorbench.store.store import Store
from tensorbench.training.saving import PLAIN

from ...messages import naming
from ..services import wait_until
from ..toy_suites import DIGITS, plan

if TYPE_CHECKING:
    from tensorbench.execution.ray import RayCluster

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

(SHORT,) = plan(training={"batch_size": 16, "steps": 2}).trials
#: A trial that is so long that only pruning ends it.
ENDLESS = SHORT.model_copy(update={"recipe": SHORT.recipe.model_copy(update={"steps": 10**7})})


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """An executor on a Ray node that claims to have a GPU."""
    import ray

    from tensorbench.execution.ray import RayCluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", partial(ray.init, num_gpus=1))
        with RayCluster.open(Place(device="cpu", workers=1)) as made:
            yield made


def run(
    cluster: RayCluster,
    trial: Trial,
    listen: Callable[[Event], None] = lambda event: None,
    limit: float | None = None,
) -> list[Event]:
    events: list[Event] = []

    def note(event: Event) -> None:
        events.append(event)
        if event.kind == "started":
            cluster.limit(trial, limit)
        listen(event)

    cluster.submit(trial)
    while not (events and events[-1].ending):
        cluster.step(note)
    return events


def test_no_actor_imports_from_the_working_folder(cluster: RayCluster) -> None:
    import ray

    def places() -> list[str]:
        import sys

        return sys.path

    actual = ray.get(ray.remote(places).remote())
    assert {os.getcwd(), ""}.isdisjoint(actual)


def test_a_trial_that_takes_too_long_has_failed_and_its_actor_is_gone(cluster: RayCluster) -> None:
    def end(event: Event) -> None:
        if event.progress is not None:
            (worker,) = cluster._workers
            worker.watch.limit = 0.0

    ending = run(cluster, ENDLESS, end, limit=1000)[-1].ending
    assert ending is not None
    assert ending.failure.startswith("timeout: ")
    assert not cluster._workers


def test_a_trial_that_no_device_takes_is_lost_and_the_next_actor_runs_the_next(cluster: RayCluster) -> None:
    cluster.device = "cuda:99"
    cluster.stop()
    (event,) = run(cluster, SHORT)
    assert event.kind == "lost"
    assert event.ending is not None
    assert event.ending.failure.startswith("lost: ")
    # torch's message depends on which of CUDA, the driver and the device is missing.
    assert any(word in event.ending.failure for word in ("CUDA", "cuda", "NVIDIA"))
    cluster.device = "cpu"
    cluster.stop()
    assert run(cluster, SHORT)[-1].kind == "finished"


def test_measures_and_artifacts_come_back_from_ray_as_such(cluster: RayCluster) -> None:
    ending = run(cluster, SHORT)[-1].ending
    assert ending is not None
    assert {type(key) for key in ending.metrics} == {Measure}
    assert {type(name) for name in ending.files} == {Artifact}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "mps"}, "cpu and cuda"),
        ({"device": "cpu", "slots_per_device": 2}, naming("--slots-per-device", "GPUs")),
        ({"device": "cuda"}, "has a GPU"),
    ],
)
def test_impossible_requests_to_a_cluster_are_refused_and_leave_no_connection(
    cluster: RayCluster, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    closed: list[bool] = []
    # The tests share one connection, so it stays open.
    monkeypatch.setattr("tensorbench.execution.ray._connect", lambda address: None)
    monkeypatch.setattr("ray.shutdown", lambda: closed.append(True))
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    with pytest.raises(UserError, match=message):
        make_executor(Place("ray", **options))
    assert closed == [True]


def test_a_cluster_that_is_not_there_is_named_as_the_environment_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tensorbench.execution.ray import RayCluster

    def nothing_there(**options: object) -> None:
        raise ConnectionError("could not find any")

    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    with pytest.raises(UserError, match=r"^RAY_ADDRESS nowhere: "):
        RayCluster.open(Place("ray"))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr("ray.init", nothing_there)
    with pytest.raises(UserError, match=naming("Ray", "auto")):
        RayCluster.open(Place(device="cpu"))


def test_a_cluster_prepares_again_while_idle_actors_hold_every_slot(
    cluster: RayCluster, store: Store
) -> None:
    # Idle actors hold slots between the points of a search.
    assert run(cluster, SHORT)[-1].kind == "finished"
    tasks = [{**DIGITS, "test_size": 41}]
    made = plan(methods=["head_only"], tasks=tasks, training={"batch_size": 16, "steps": 2})
    kinds = []
    with session(store) as at_work:
        for _ in range(2):
            cluster.prepare(list(made.trials))
            execute(made, list(made.trials), at_work, cluster, lambda event: kinds.append(event.kind))
    assert kinds.count("finished") == 1
    assert kinds[-1] == "elsewhere"


def test_as_many_trials_share_a_gpu_as_their_fraction_allows(
    cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two trials fit. A third waits until one of them has ended.
    import ray

    from tensorbench.execution.ray import RayCluster, SlotShare

    class Slot:
        def __init__(self, *_: object) -> None:
            self.kinds: list[str] = []

        def run(self, trial: Any) -> None:
            self.trial = trial
            self.kinds.append("progress")

        def finish(self) -> None:
            self.kinds.append("finished")

        def events(self) -> list[Any]:
            kinds, self.kinds = self.kinds, []
            worker = str(ray.get_gpu_ids())
            ended = {"finished": "an ending"}
            return [
                SimpleNamespace(trial=self.trial, kind=k, worker=worker, ending=ended.get(k), broken=False)
                for k in kinds
            ]

    monkeypatch.setattr("tensorbench.execution.ray._Slot", Slot)
    cluster.stop()
    heard: list[Any] = []

    def hear(event: Any) -> None:
        heard.append(event)
        if len(heard) == 2:
            # A node reports its free resources only now and then.
            wait_until(lambda: ray.available_resources().get("GPU", 0) == 0)
            next(w for w in place._workers if w.trial and w.trial.id == event.trial.id).actor.finish.remote()

    with monkeypatch.context() as patch:
        # The tests share one connection.
        patch.setattr(ray, "shutdown", lambda: None)
        with RayCluster("cuda", SlotShare.of_gpus(2), None, PLAIN) as place:
            assert place.slots == place.free == 2
            for number in range(3):
                place.submit(SimpleNamespace(id=str(number)))  # type: ignore[arg-type]
            assert place.free == 0
            while len(heard) < 4:
                place.step(hear)
    assert [event.kind for event in heard] == ["progress", "progress", "finished", "progress"]
    assert {event.worker for event in heard} == {"[0]"}
    assert len({event.trial.id for event in heard}) == 3
