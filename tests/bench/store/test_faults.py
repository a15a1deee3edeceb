"""Tests that nothing hangs or is stored twice if the network loses, cuts, duplicates or delays answers."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from tensorbench.records.words import Artifact
from tensorbench.store import claims
from tensorbench.store.store import Store

from ..proxy import Fault, Proxy, first_of_each, proxy, share
from ..services import Server
from ..toy_runs import SHORT, executed
from ..toy_suites import VISION, plan

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Server]:
    """An MLflow server over an SQLite file."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    started = Server(f"sqlite:///{folder / 'mlflow.db'}", folder)
    yield started
    started.stop()


@pytest.fixture
def between(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of the server. Clients retry without waiting."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    monkeypatch.setattr(claims, "PROBE", 0.05)
    with proxy(server.uri) as made:
        yield made


def check(store: Store, trials: int) -> None:
    """Checks that each trial finished exactly once.

    Also checks that no claim, sign of life or running run remains, and that the outbox is empty.
    """
    records = store.records()
    done = Counter(record.trial_id for record in records if record.status == "FINISHED")
    assert sorted(done.values()) == [1] * trials
    assert not store.running()
    assert not list(
        store.client.search_registered_models(f"name LIKE '{claims.PREFIX}.{store.experiment_id}.%'")
    )
    signs = [
        tag for tag in store.client.get_experiment(store.experiment_id).tags if tag.startswith(claims.SIGN)
    ]
    assert not signs
    assert not list(store.outbox.glob("*/[!.]*"))


@pytest.mark.parametrize("fault", get_args(Fault))
def test_a_fault_at_the_first_request_to_every_endpoint_loses_and_repeats_nothing(
    between: Proxy, fault: Fault
) -> None:
    made = plan(methods=["lora", "head_only"], training=SHORT)
    store = Store.create(between.uri, f"every-{fault}")
    between.choose, between.delay = first_of_each(fault), 0.1
    events = executed(store, made)
    between.choose = lambda endpoint: None
    assert {endpoint for endpoint, _ in between.faults} >= {
        "POST mlflow/registered-models/create",
        "DELETE mlflow/registered-models/delete",
        "POST mlflow/experiments/set-experiment-tag",
        "POST mlflow/runs/create",
        "POST mlflow/runs/log-batch",
        "POST mlflow/runs/search",
        "POST mlflow/runs/update",
        "PUT mlflow-artifacts/artifacts",
    }
    assert [event.kind for event in events] == ["finished", "finished"]
    check(store, 2)


@pytest.mark.parametrize("endpoint", ["POST mlflow/registered-models/create", "POST mlflow/runs/create"])
def test_requests_executed_without_answer_are_adopted(
    between: Proxy, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    """If a claim's answer is lost, the claim is used. If a new run's answer is lost, the run is closed."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    made = plan(methods=["head_only"], training=SHORT)
    store = Store.create(between.uri, f"untold-{endpoint.rpartition('/')[0].rpartition('/')[2]}")
    lost: list[str] = []

    def choose(requested: str) -> Fault | None:
        # The first run is the suite's own.
        if requested != endpoint or (between.requests[requested] < 2 and "runs" in requested) or lost:
            return None
        lost.append(requested)
        return "lost"

    between.choose = choose
    assert [event.kind for event in executed(store, made)] == ["finished"]
    assert lost
    check(store, 1)


def test_a_fifth_of_all_answers_may_be_cut(between: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    made = plan(methods=["lora", "head_only"], seeds=[0, 1], training=SHORT)
    store = Store.create(between.uri, "cut")
    between.choose = share(0.2, "cut", "lost", "shortened", "doubled")
    events = executed(store, made)
    between.choose = lambda endpoint: None
    assert [event.kind for event in events] == ["finished"] * 4
    check(store, 4)


def test_a_fifth_of_all_answers_to_a_suite_of_studies_may_be_errors(between: Proxy) -> None:
    base = {key: value for key, value in VISION.items() if key != "seeds"}
    tuning = {"studies": 2, "points": 2}
    made = plan(base, methods=["lora", "head_only"], training=SHORT, tuning=tuning)
    store = Store.create(between.uri, "errors")
    between.choose = share(0.2, "refused", "failed")
    assert [event.kind for event in executed(store, made)] == ["finished"] * 8
    between.choose = lambda endpoint: None
    check(store, 8)


def test_reading_from_a_server_leaves_no_file_behind(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.create(server.uri, "read")
    executed(store, plan(methods=["lora"], training=SHORT))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (record,) = store.records()
    assert store.read(record, Artifact.CONFIG) == store.read(record, Artifact.CONFIG) != b""
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
