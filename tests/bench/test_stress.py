"""The stress scenarios, small; `python -m tests.stress` runs them whole (docs/clusters.md)."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..stress import scenarios
from ..stress.services import postgres_programs


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


@pytest.mark.skipif(postgres_programs() is None, reason="PostgreSQL's server programs are not installed")
def test_two_drivers_outlast_an_outage_of_the_server_over_postgresql(folder: Path) -> None:
    report = scenarios.outage(folder, trials=16, seconds=3, steps=100, both=False, options=())
    assert sum(report["by driver"]) == 16
    assert min(report["by driver"]) > 0


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_lost_ray_node_costs_only_what_ran_there(folder: Path) -> None:
    report = scenarios.ray_nodes(folder, trials=8, steps=150, cpus=1)
    assert report["lost with the node"] == 1
