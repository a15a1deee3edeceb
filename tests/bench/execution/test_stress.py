"""The stress scenarios, small; `python -m tests.stress` runs them whole (docs/clusters.md)."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from bench.execution.driver import execute
from bench.execution.session import session
from bench.search.storage import open_storage
from bench.store.store import Store
from bench.wire.words import Kind, Status

from ...stress import scenarios
from ...stress.services import Postgres, postgres_programs
from ..held import await_held, let_all_through, started
from ..toy_runs import SHORT, executed
from ..toy_suites import DIGITS, plan, write

pytestmark = pytest.mark.processes


@pytest.fixture
def folder(new_store: Callable[[Path], str]) -> Iterator[Path]:
    """One that PostgreSQL's unprivileged user can come by, with an empty store."""
    with tempfile.TemporaryDirectory(prefix="tensorbench-") as made:
        path = Path(made)
        path.chmod(0o755)
        new_store(path)
        yield path


def test_killed_workers_and_drivers_lose_and_repeat_nothing(folder: Path) -> None:
    report: dict[str, Any] = scenarios.kills(
        folder, trials=6, steps=20, workers=1, worker_kills=1, driver_kills=1
    )
    assert (report["workers killed"], report["drivers killed"], report["starts"]) == (1, 1, 2)
    assert report["lost"] == 1


POSTGRES = pytest.mark.skipif(
    postgres_programs() is None, reason="PostgreSQL's server programs are not installed"
)


@pytest.mark.postgres
@POSTGRES
def test_two_drivers_outlast_an_outage_of_the_server_over_postgresql(folder: Path) -> None:
    report = scenarios.outage(folder, trials=6, steps=20, seconds=0, both=False, options=())
    assert sum(report["by driver"]) == 6


@pytest.mark.postgres
@POSTGRES
def test_a_suite_runs_straight_into_postgresql_and_its_tables_have_what_mlflow_gives(folder: Path) -> None:
    database = Postgres(folder / "postgres")
    try:
        made = plan(methods=["head_only", "lora"], training=SHORT)
        store = Store.create(database.uri, "toy")
        assert [event.kind for event in executed(store, made)] == ["finished", "finished"]
        for kind in Kind:
            assert store.records(kind) == store._find(kind)
        assert {record.status for record in store.records()} == {Status.FINISHED}
        assert store.plan() == made.stored()
        assert not store.client.search_registered_models()
    finally:
        database.stop()


@pytest.mark.postgres
@POSTGRES
def test_a_killed_search_goes_on_as_two_that_share_its_study_over_postgresql(folder: Path) -> None:
    methods = [{"method": "tenslora", "variant": "qkv_depth"}]
    changes = {"methods": methods, "seeds": [0], "search": {"trials": 4, "pruner": "none"}}
    suite, store = write(folder, **changes), scenarios.sqlite(folder)
    database = Postgres(folder / "postgres")
    try:
        command = ("search", suite, "--store", store, "--storage", database.uri)
        with started(folder, *command, through=1) as first:
            await_held(first, folder)
        let_all_through(folder)
        with started(folder, *command, through=0) as one, started(folder, *command, through=0) as two:
            said = [process.output() for process in (one, two)]
        assert [one.returncode, two.returncode] == [0, 0], said
        storage = open_storage(database.uri)
        (name,) = optuna.get_all_study_names(storage)
        trials = optuna.load_study(study_name=name, storage=storage).trials
    finally:
        database.stop()
    tried = [tuple(trial.user_attrs["ranks"]) for trial in trials if trial.state.name == "COMPLETE"]
    assert len(set(tried)) == len(tried) == 4
    assert {trial.state.name for trial in trials} == {"COMPLETE", "FAIL"}


RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.mark.ray
@RAY
def test_a_lost_ray_node_costs_only_what_ran_there(folder: Path) -> None:
    report = scenarios.ray_nodes(folder, trials=4, steps=20, cpus=1)
    assert report["lost with the node"] == 1


@pytest.mark.ray
@RAY
def test_ray_prepares_again_where_idle_actors_hold_every_slot(folder: Path) -> None:
    """As between the phases of a tuned suite, and between the points of a search."""
    from bench.execution.ray import RayCluster

    first, more = (
        plan(methods=["head_only"], tasks=[{**DIGITS, "test_size": size}], training=SHORT)
        for size in (40, 41)
    )
    kinds = []
    cluster = RayCluster.connect("cpu", workers=1)
    with cluster, session(Store.create(scenarios.sqlite(folder), "toy")) as at_work:
        for made in (first, more, more):
            cluster.prepare(list(made.trials))
            execute(made, list(made.trials), at_work, cluster, lambda event: kinds.append(event.kind))
    assert kinds.count("finished") == 2
    assert kinds[-1] == "elsewhere"
