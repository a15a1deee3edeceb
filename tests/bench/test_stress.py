"""The stress scenarios, small; `python -m tests.stress` runs them whole (docs/clusters.md)."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.execution.driver import execute, session
from bench.tracking import Store

from ..stress import scenarios
from ..stress.services import postgres_programs
from .toy_suites import DIGITS, plan

#: Starting an MLflow server twice, or Ray's nodes and workers, takes 30 to 90 s on two cores:
#: `TENSORBENCH_WHOLE=1 python -m pytest -n 0 tests/bench/test_stress.py` runs these too.
WHOLE = pytest.mark.skipif(not os.environ.get("TENSORBENCH_WHOLE"), reason="TENSORBENCH_WHOLE is not set")


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that PostgreSQL's unprivileged user can come by."""
    with tempfile.TemporaryDirectory(prefix="tensorbench-") as made:
        path = Path(made)
        path.chmod(0o755)
        yield path


def test_killed_workers_and_drivers_lose_and_repeat_nothing(folder: Path) -> None:
    report: dict[str, Any] = scenarios.kills(folder, trials=10, workers=1, worker_kills=1, driver_kills=1)
    assert (report["workers killed"], report["drivers killed"], report["starts"]) == (1, 1, 2)


@WHOLE
@pytest.mark.skipif(postgres_programs() is None, reason="PostgreSQL's server programs are not installed")
def test_two_drivers_outlast_an_outage_of_the_server_over_postgresql(folder: Path) -> None:
    report = scenarios.outage(folder, trials=8, seconds=2, both=False, options=())
    assert sum(report["by driver"]) == 8
    assert min(report["by driver"]) > 0


RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@WHOLE
@RAY
def test_a_lost_ray_node_costs_only_what_ran_there(folder: Path) -> None:
    report = scenarios.ray_nodes(folder, trials=4, steps=150, cpus=1)
    assert report["lost with the node"] == 1


@WHOLE
@RAY
def test_ray_prepares_again_where_idle_actors_hold_every_slot(folder: Path) -> None:
    """As between the phases of a tuned suite, and between the points of a search."""
    from bench.execution.ray import RayCluster

    steps = {"batch_size": 16, "steps": 1}
    first, more = (
        plan(methods=["head_only"], tasks=[{**DIGITS, "test_size": size}], training=steps)
        for size in (40, 41)
    )
    kinds = []
    cluster = RayCluster("cpu", 1, None, None)
    with cluster, session(Store.create(scenarios.sqlite(folder), "toy")) as at_work:
        for made in (first, more, more):
            cluster.prepare(list(made.trials))
            execute(made, list(made.trials), at_work, cluster, lambda event: kinds.append(event.kind))
    assert kinds.count("finished") == 2
    assert kinds[-1] == "elsewhere"
