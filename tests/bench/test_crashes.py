"""Tests that nothing is lost, repeated or half-written, whatever fault a program meets at any step."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest

from tensorbench.store import claims
from tensorbench.store.opening import unpack
from tensorbench.store.store import Store

from ..fixtures import NewStore
from ..packs import packed
from . import crashes, proxy
from .crashes import FATAL, Fault, Step, check, check_half, check_once
from .proxy import Proxy, first_of_each, share
from .services import Server, await_end
from .toy_runs import SHORT, executed
from .toy_suites import UNSEEDED, plan

pytestmark = pytest.mark.processes

MakeStore = Callable[[str], Store]

PLAN = plan(methods=["lora", "head_only"], training=SHORT)
TRIALS = [trial.id for trial in PLAN.trials]


@pytest.fixture
def make_store(tmp_path: Path, new_store: NewStore) -> MakeStore:
    """A function that makes a store with the experiment `toy` in a folder of this name."""

    def make(name: str) -> Store:
        (tmp_path / name).mkdir()
        return Store.create(new_store(tmp_path / name), "toy")

    return make


@pytest.fixture(scope="module")
def unhindered(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> list[Step]:
    """The steps of a run that nothing hinders."""
    folder = tmp_path_factory.mktemp("unhindered")
    store = Store.create(new_store(folder), "toy")
    run = crashes.start(folder, "run", store.uri)
    assert run.returncode == 0, run.output()
    assert check(store, TRIALS) == {"FINISHED": 2}
    return crashes.steps(folder)


def firsts(steps: list[Step], fault: Fault, most: int = 1000) -> list[int]:
    """The numbers of steps that a fault can meet: the first of each name, or about `most` of these."""
    first = {(step.kind, step.name): step.number for step in reversed(steps) if step.meets(fault)}
    return sorted(first.values())[:: max(1, len(first) // most)]


@pytest.mark.parametrize("fault", FATAL)
def test_after_a_fault_that_ends_the_program_the_next_start_finishes_what_is_left(
    unhindered: list[Step], fault: Fault, tmp_path: Path, make_store: MakeStore
) -> None:
    # Only those that are killed meet every step.
    numbers = firsts(unhindered, fault, most=8)
    if fault == "read-only":
        # The steps of the outbox. Those of the store are as on a full disk.
        numbers = firsts([step for step in unhindered if "outbox" in step.name], fault)
    elif fault == "killed elsewhere":
        numbers = numbers[::2]
    elif fault == "killed":
        # The second trial's steps are those of the first.
        names = [step.name for step in unhindered]
        second = names.index("finished lora") + 1, names.index("finished head_only")
        others = unhindered[: second[0]] + unhindered[second[1] :]
        numbers = [step.number for step in others if step.kind != "sql"]
    assert numbers
    for number in numbers:
        store, folder = make_store(str(number)), tmp_path / str(number)
        crash = crashes.start(folder, "run", store.uri, fault=fault, step=number)
        assert crash.returncode in FATAL[fault], crash.output()
        assert "Traceback" not in crash.output()
        check_half(store)
        if fault == "interrupted":
            assert not store.running(), crash.output()
        again = crashes.start(folder, "run", store.uri, fault=fault)
        assert again.returncode == 0, again.output()
        check(store, TRIALS)
        check_once(folder)


@pytest.mark.parametrize("fault", ["failed", "unanswered"])
def test_a_driver_goes_on_after_a_request_that_failed_once(
    unhindered: list[Step], fault: Fault, tmp_path: Path, make_store: MakeStore
) -> None:
    # Those before the first trial end the program.
    begun = next(step.number for step in unhindered if "registered_model" in step.name)
    for number in firsts(unhindered[begun:], fault):
        store, folder = make_store(str(number)), tmp_path / str(number)
        run = crashes.start(folder, "run", store.uri, fault=fault, step=number)
        assert run.returncode == 0, run.output()
        if unhindered[number - 1].name == "DELETE FROM experiment_tags":
            # The driver's last request: its sign of life stays until the next start.
            assert crashes.start(folder, "run", store.uri).returncode == 0
        check(store, TRIALS)
        check_once(folder)


@pytest.mark.parametrize("fault", ["killed", "worker killed"])
def test_a_death_at_any_event_of_a_worker_costs_its_trial_one_attempt_and_leaves_no_process(
    fault: Fault, tmp_path: Path, make_store: MakeStore
) -> None:
    first = make_store("unhindered")
    assert crashes.start(tmp_path / "unhindered", "run", first.uri, "local").returncode == 0
    killed = 0
    for step in crashes.steps(tmp_path / "unhindered"):
        if step.kind != "event" or "head_only" in step.name:
            continue
        store, folder = make_store(str(step.number)), tmp_path / str(step.number)
        run = crashes.start(folder, "run", store.uri, "local", fault=fault, step=step.number)
        if fault == "killed":
            assert run.returncode == -signal.SIGKILL, run.output()
            await_end(crashes.workers(folder))
            run = crashes.start(folder, "run", store.uri, "local")
        assert run.returncode == 0, run.output()
        await_end(crashes.workers(folder))
        runs = check(store, TRIALS)
        assert runs["KILLED"] <= 1
        killed += runs["KILLED"]
        check_once(folder)
    assert killed


# --- unpacking ---


@pytest.mark.parametrize("bare", [False, True], ids=["into nothing", "adapters alone"])
def test_an_unpack_that_is_killed_is_completed_by_the_same_unpack(
    trained: tuple[Path, Path], bare: bool, tmp_path: Path, new_store: NewStore
) -> None:
    without, pack = trained

    def store_in(name: str) -> tuple[Path, str]:
        folder = tmp_path / name
        folder.mkdir()
        uri = new_store(folder)
        if bare:
            unpack(without, store=uri)
        return folder, uri

    folder, uri = store_in("unhindered")
    assert crashes.start(folder, "unpack", uri, pack).returncode == 0
    # If the adapter comes later, the predictions stay those of the first pack, which has no logits.
    expected = packed(uri, "toy", folder / "again", adapters=True).read_bytes()
    assert bare or expected == pack.read_bytes()
    for number in firsts(crashes.steps(folder), "killed", most=12):
        folder, uri = store_in(str(number))
        crash = crashes.start(folder, "unpack", uri, pack, step=number)
        assert crash.returncode == -signal.SIGKILL, crash.output()
        if store := Store.there(uri, "toy"):
            check_half(store, bare)
        unpack(pack, store=uri)
        assert not Store.existing(uri, "toy").running()
        assert packed(uri, "toy", folder / "again", adapters=True).read_bytes() == expected


# --- a bad network ---


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
    with proxy.proxy(server.uri) as made:
        yield made


@pytest.mark.parametrize("fault", get_args(proxy.Fault))
def test_a_fault_at_the_first_request_to_every_endpoint_loses_and_repeats_nothing(
    between: Proxy, fault: proxy.Fault
) -> None:
    store = Store.create(between.uri, f"every-{fault}")
    between.choose, between.delay = first_of_each(fault), 0.1
    events = executed(store, PLAN)
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
    check(store, TRIALS)


@pytest.mark.parametrize("endpoint", ["POST mlflow/registered-models/create", "POST mlflow/runs/create"])
def test_requests_executed_without_answer_are_adopted(
    between: Proxy, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    """If a claim's answer is lost, the claim is used. If a new run's answer is lost, the run is closed."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store = Store.create(between.uri, f"untold-{endpoint.split('/')[1]}")
    lost: list[str] = []

    def choose(requested: str) -> proxy.Fault | None:
        # The first run is the suite's own.
        if requested != endpoint or (between.requests[requested] < 2 and "runs" in requested) or lost:
            return None
        lost.append(requested)
        return "lost"

    between.choose = choose
    assert [event.kind for event in executed(store, PLAN)] == ["finished", "finished"]
    assert lost
    check(store, TRIALS)


@pytest.mark.parametrize("faults", [("cut", "lost", "shortened", "doubled"), ("refused", "failed")])
def test_a_fifth_of_all_answers_may_be_missing_or_errors(
    between: Proxy, monkeypatch: pytest.MonkeyPatch, faults: tuple[proxy.Fault, ...]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    made = plan(UNSEEDED, methods=["lora"], training=SHORT, tuning={"studies": 2, "points": 2})
    store = Store.create(between.uri, faults[0])
    between.choose = share(0.2, *faults)
    assert [event.kind for event in executed(store, made)] == ["finished"] * 4
    between.choose = lambda endpoint: None
    check(store, [trial.id for trial in made.trials])
