"""Runs small versions of the stress scenarios. `python -m tools.stress` runs the large ones."""

from __future__ import annotations

import importlib.util
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest

import tensorbench.execution.perform
from tensorbench.methods import UserError
from tensorbench.records.words import RunKind, Status, Tag
from tensorbench.store.store import Store
from tools.stress import scenarios

from .. import crashes
from ..holding import FORK_WORKERS
from ..services import Postgres, postgres_programs
from ..toy_runs import SHORT, executed, raising
from ..toy_suites import plan

pytestmark = pytest.mark.processes


@pytest.fixture
def folder(new_store: Callable[[Path], str]) -> Iterator[Path]:
    """A folder with an empty store. The user `postgres` can enter it, in case that user runs PostgreSQL."""
    with tempfile.TemporaryDirectory(prefix="tensorbench-") as made:
        path = Path(made)
        path.chmod(0o755)
        new_store(path)
        yield path


def test_killed_workers_and_drivers_lose_and_repeat_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FORK_WORKERS, "yes")
    report: dict[str, Any] = scenarios.kills(
        folder, trials=6, steps=20, workers=1, worker_kills=1, driver_kills=1
    )
    assert (report["workers killed"], report["drivers killed"], report["starts"]) == (1, 1, 2)
    # Zero if the worker had sent its result before it was killed.
    assert report["lost"] <= 1


@pytest.mark.parametrize("how", ["busy", "stopped", "parent"])
def test_a_worker_ends_with_its_driver_whatever_it_does(
    folder: Path, how: Literal["busy", "stopped", "parent"]
) -> None:
    assert scenarios.outlive(folder, how)["processes left"] == 0


@pytest.fixture
def database(folder: Path) -> Iterator[Postgres]:
    started = Postgres(folder / "postgres")
    yield started
    started.stop()


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
def test_postgresql_outlasts_a_killed_first_start_and_one_that_is_stopped_is_an_error(
    folder: Path, database: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = crashes.start(folder, "create", database.uri, step=100)
    assert killed.returncode == -signal.SIGKILL, killed.output()
    assert Store.create(database.uri, "toy").records() == []
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
    server = psutil.Process(int((folder / "postgres" / "data" / "postmaster.pid").read_text().split()[0]))
    server.suspend()
    try:
        with pytest.raises(UserError, match="timeout expired"):
            Store.create(database.uri, "toy")
    finally:
        server.resume()


@pytest.mark.postgres
@POSTGRES
def test_a_suite_runs_straight_into_postgresql_and_its_tables_have_what_mlflow_gives(
    database: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(methods=["head_only", "lora"], training=SHORT)
    store = Store.create(database.uri, "toy")
    assert [event.kind for event in executed(store, made)] == ["finished", "finished"]
    for kind in RunKind:
        assert store.records(kind) == store._find(f"tags.{Tag.KIND} = '{kind}'")
    assert {record.status for record in store.records()} == {Status.FINISHED}
    assert store.plan() == made.stored()
    assert not store.client.search_registered_models()
    # PostgreSQL rejects NUL characters.
    monkeypatch.setattr(tensorbench.execution.perform, "run_trial", raising(ValueError("a\0b \udce9")))
    failing = plan(methods=["lora"], training={**SHORT, "lr": 0.1})
    assert [event.kind for event in executed(store, failing)] == ["failed"]
    assert store.records()[-1].tags["failure_message"] == "ValueError: a\\x00b \\udce9"
    assert not list(store.outbox.glob("*/[!.]*"))


RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.mark.ray
@RAY
def test_a_lost_ray_node_costs_only_what_ran_there(folder: Path) -> None:
    # The driver waits at a trial's first progress, but its worker goes on: trials take longer than the kill.
    report = scenarios.ray_nodes(folder, trials=4, steps=1000, cpus=1)
    assert report["lost with the node"] == 1
