"""Faults that runs meet on clusters, caused on purpose with real processes and servers.

Each scenario works in a folder of its own and returns a report of the events. It raises AssertionError if a
promise is broken. The tests run small versions, and `python -m tools.stress` runs the full ones.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import psutil
import yaml

from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import load_suite
from tensorbench.records.record import Record
from tensorbench.store.store import Store
from tests.bench import crashes
from tests.bench.programs import Program
from tests.bench.proxy import Choose, proxy, share
from tests.bench.services import Driver, Postgres, Server, await_end, container, driver, wait_until

from . import outliving

Report = dict[str, Any]


def write_suite(folder: Path, trials: int, steps: int = 30, **changes: Any) -> Path:
    """Writes a suite of `trials` trials: two methods on half as many seeds. `changes` replace its fields."""
    suite = {
        "name": "stress",
        "backbones": ["tiny-random-vit"],
        "tasks": [{"task": "digits", "train_size": 60, "validation_size": 30, "test_size": 40}],
        "methods": ["head_only", "lora"],
        "budgets": [{"isoparameters": 2}],
        "seeds": list(range(trials // 2)),
        "training": {"lr": 5e-3, "batch_size": 16, "steps": steps},
        **changes,
    }
    file = folder / "suite.yaml"
    file.write_text(yaml.safe_dump(suite))
    return file


def sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def records(store: str) -> list[Record]:
    return Store.existing(store, "stress").records()


def check(suite: Path, store: str) -> Counter[str]:
    """Checks that each trial finished exactly once, and that nothing is left over (see `crashes.check`)."""
    planned = [trial.id for trial in make_plan(load_suite(suite)).trials]
    return crashes.check(Store.existing(store, "stress"), planned)


def no_secret_words(log: Path) -> None:
    text = log.read_text(errors="replace")
    for word in ("Traceback", "database is locked"):
        assert word not in text, text[-3000:]


def kills(
    folder: Path,
    trials: int = 200,
    steps: int = 30,
    workers: int = 4,
    worker_kills: int = 16,
    driver_kills: int = 2,
) -> Report:
    """Kills random workers and sometimes the driver, and restarts the same command until it completes."""
    suite, store, chance = write_suite(folder, trials, steps), sqlite(folder), random.Random(0)
    victims = ["driver"] * driver_kills + ["worker"] * worker_kills
    # Each trial is held at least once.
    plan = dict(zip(chance.sample(range(trials), len(victims)), victims, strict=True))
    killed: Counter[str] = Counter()
    holds = starts = 0
    began = time.monotonic()
    code = None
    while code != 0:
        starts += 1
        assert starts <= len(victims) + 1, "it does not come to an end"
        with driver(suite, store, "--executor", "local", "--workers", str(workers), held=True) as run:
            while run.next_held() is not None:
                victim = plan.get(holds)
                holds += 1
                if victim == "worker":
                    chance.choice(run.workers()).kill()
                elif victim == "driver":
                    orphans = run.workers()
                    run.end()
                    # They end with their driver.
                    psutil.wait_procs(orphans)
                killed[victim or "nothing"] += 1
                run.release()
            code = run.process.wait()
    assert (killed["driver"], killed["worker"]) == (driver_kills, worker_kills)
    statuses = check(suite, store)
    no_secret_words(folder / "driver.log")
    lost = sum(record.tags.get("failure") == "lost" for record in records(store))
    return {
        "trials": trials,
        "workers killed": killed["worker"],
        "drivers killed": killed["driver"],
        "starts": starts,
        "runs by status": dict(statuses),
        "lost": lost,
        "seconds": round(time.monotonic() - began),
    }


def first_starts(folder: Path, kills: int = 12) -> Report:
    """Kills the first start at many points of creating a store, and starts normally after each kill."""
    began = time.monotonic()
    crashes.start(folder, "create", sqlite(folder))
    steps = len(crashes.steps(folder))
    for number in range(kills):
        where = folder / f"kill-{number}"
        where.mkdir()
        killed = crashes.start(where, "create", sqlite(where), step=1 + number * (steps - 1) // kills)
        assert killed.returncode == -signal.SIGKILL
        suite = write_suite(where, 2, steps=2)
        with driver(suite, sqlite(where)) as run:
            assert run.process.wait() == 0, run.log.read_text()[-3000:]
        check(suite, sqlite(where))
    return {"kills": kills, "broken stores": 0, "seconds": round(time.monotonic() - began)}


def outlive(folder: Path, how: Literal["busy", "stopped", "parent"]) -> Report:
    """Kills a driver whose worker cannot end by itself, and checks that all its processes end.

    The worker holds Python's lock (`busy`), is stopped (`stopped`) or has started a process (`parent`).
    """
    pids = folder / "pids"
    arguments = (how, write_suite(folder, 2), pids)
    program = Program(Path(outliving.__file__), arguments, folder, folder / f"{how}.log")
    try:
        wait_until(pids.exists, program)
        left = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    finally:
        program.kill()
        program.wait()
    await_end(left)
    return {"processes left": 0}


def outliving_workers(folder: Path) -> Report:
    """Runs `outlive` for each of its three kinds of worker."""
    report: Report = {}
    for how in ("busy", "stopped", "parent"):
        (folder / how).mkdir()
        report[how] = outlive(folder / how, how)
    return report


def ray_nodes(folder: Path, trials: int = 40, steps: int = 60, cpus: int = 2) -> Report:
    """Runs two Ray nodes on this machine and kills one while a trial runs there."""
    from ray.cluster_utils import Cluster

    suite, store = write_suite(folder, trials, steps), sqlite(folder)
    # The nodes' workers import the harness.
    environment = patch.dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2]))
    environment.start()
    # With waiting, Ray would give up on a node after 30 seconds.
    node = {"num_cpus": cpus, "object_store_memory": 100 * 2**20, "wait": False}
    # By default Ray notices a dead node after five checks three seconds apart.
    looks = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300}
    began = time.monotonic()
    cluster = Cluster(initialize_head=True, head_node_args={**node, "_system_config": looks})
    try:
        second = cluster.add_node(**node)
        socket = second.plasma_store_socket_name

        def node_names() -> list[str]:
            nodes = cluster.global_state.node_table()
            return [node["NodeID"] for node in nodes if node["ObjectStoreSocketName"] == socket]

        wait_until(lambda: bool(node_names()))
        (there,) = node_names()
        options = ("--executor", "ray", "--ray-address", cluster.address)
        with driver(suite, store, *options, held=True) as run:
            # A worker's name begins with its node's.
            while not (worker := run.next_held() or "").startswith(there[:6]):
                assert worker, run.log.read_text()[-3000:]
                run.release()
            cluster.remove_node(second, allow_graceful=False)
            run.hold(False)
            code = run.process.wait()
    finally:
        cluster.shutdown()
        environment.stop()
    assert code == 0, run.log.read_text()[-3000:]
    statuses = check(suite, store)
    no_secret_words(run.log)
    lost = [record for record in records(store) if record.tags.get("failure") == "lost"]
    assert lost, "nothing ran on the node that was killed"
    return {
        "trials": trials,
        "runs by status": dict(statuses),
        "lost with the node": len(lost),
        "said": lost[0].tags["failure_message"],
        "seconds": round(time.monotonic() - began),
    }


def outage(
    folder: Path,
    trials: int = 60,
    seconds: float = 20,
    steps: int = 60,
    both: bool = True,
    options: tuple[str, ...] = ("--executor", "local", "--workers", "2"),
) -> Report:
    """Stops and restarts the MLflow server, and then PostgreSQL, while two drivers run trials.

    Both drivers share one experiment on a server over PostgreSQL. If `both` is False, only the
    server stops.
    """
    suite = write_suite(folder, trials, steps)
    began = time.monotonic()
    with ExitStack() as stack:
        postgres = Postgres(folder / "postgres")
        stack.callback(postgres.stop)
        server = Server(postgres.uri, folder)
        stack.callback(lambda: server.stop())
        runs = [
            stack.enter_context(driver(suite, server.uri, *options, name=name, held=True))
            for name in ("one", "two")
        ]
        outages: list[tuple[str, Callable[[], None], Callable[[], None]]] = [
            ("MLflow server", server.stop, server.start),
            ("PostgreSQL", postgres.stop, postgres.start),
        ]
        for _, stop, start in outages[: 1 + both]:
            for run in runs:
                run.hold(True)
                for _ in range(max(1, trials // 10)):
                    assert run.next_held() is not None, run.log.read_text()[-3000:]
                    run.release()
            for run in runs:
                assert run.next_held() is not None, run.log.read_text()[-3000:]
            outbox = Store.existing(server.uri, "stress").outbox
            stop()
            for run in runs:
                run.hold(False)
            # Both drivers were running a trial whose record cannot be sent now.
            wait_until(lambda: len(list(outbox.glob("*/[!.]*"))) >= len(runs), *(r.process for r in runs))  # noqa: B023
            time.sleep(seconds)
            start()
        codes = [run.process.wait() for run in runs]
        assert codes == [0, 0], [run.log.read_text()[-3000:] for run in runs]
        statuses = check(suite, server.uri)
        # A run whose creation was unanswered is closed as killed.
        assert statuses.keys() <= {"FINISHED", "KILLED"}, statuses
        for run in runs:
            no_secret_words(run.log)
    return {
        "trials": trials,
        "by driver": [_done(run) for run in runs],
        "away": [name for name, *_ in outages[: 1 + both]],
        "seconds away, each": seconds,
        "runs by status": dict(statuses),
        "seconds": round(time.monotonic() - began),
    }


def faults(folder: Path, trials: int = 6) -> Report:
    """Runs two drivers on a server behind a bad network.

    First a fifth of all answers are cut, lost or doubled, then a fifth are errors, then every request takes
    half a second longer.
    """
    networks: dict[str, Choose] = {
        "a fifth cut, lost or doubled": share(0.2, "cut", "lost", "doubled"),
        "a fifth answered with 500": share(0.2, "refused", "failed"),
        "half a second late": lambda endpoint: "late",
    }
    report: Report = {"trials": trials}
    for number, (name, choose) in enumerate(networks.items()):
        where = folder / str(number)
        where.mkdir()
        report[name] = _behind(where, trials, choose)
    return report


def silence(folder: Path, trials: int = 6, seconds: float = 45) -> Report:
    """Runs two drivers on a server that for a while accepts every request but answers none."""
    return {"trials": trials, "seconds silent": seconds, **_behind(folder, trials, silent=seconds)}


def _behind(folder: Path, trials: int, choose: Choose | None = None, *, silent: float = 0) -> Report:
    """Runs two drivers with one worker each, which reach a server over PostgreSQL through a proxy.

    If `silent` is above 0, answers stop for that many seconds while both drivers run a trial.
    """
    suite = write_suite(folder, trials)
    began = time.monotonic()
    with ExitStack() as stack:
        postgres = Postgres(folder / "postgres")
        stack.callback(postgres.stop)
        server = Server(postgres.uri, folder)
        stack.callback(server.stop)
        between = stack.enter_context(proxy(server.uri))
        between.choose = choose or between.choose
        options = ("--executor", "local", "--workers", "1")
        runs = [
            stack.enter_context(driver(suite, between.uri, *options, name=who, held=bool(silent)))
            for who in ("one", "two")
        ]
        if silent:
            for run in runs:
                assert run.next_held() is not None, run.log.read_text()[-3000:]
            between.delay, between.choose = 10 * silent, lambda endpoint: "late"
            for run in runs:
                run.hold(False)
            time.sleep(silent)
            between.go_on.set()
        codes = [run.process.wait() for run in runs]
        assert codes == [0, 0], [run.log.read_text()[-3000:] for run in runs]
        statuses = check(suite, server.uri)
        for run in runs:
            no_secret_words(run.log)
    return {
        "by driver": [_done(run) for run in runs],
        "faults": sum(between.faults.values()),
        "requests": sum(between.requests.values()),
        "runs by status": dict(statuses),
        "seconds": round(time.monotonic() - began),
    }


def containers(folder: Path, trials: int = 24) -> Report:
    """Runs two drivers on one store in separate process namespaces, as in two containers with one host name.

    One driver runs all trials except the one that the other holds.
    """
    inside = container()
    assert inside is not None, "processes may not have a namespace of their own here"
    suite, store = write_suite(folder, trials), sqlite(folder)
    began = time.monotonic()
    with driver(suite, store, name="one", held=True, inside=inside) as first:
        assert first.next_held() is not None, first.log.read_text()[-3000:]
        with driver(suite, store, name="two", inside=inside) as second:
            # It runs all trials except the held one, which it must not take.
            wait_until(lambda: _done(second) == trials - 1, second.process)
            first.hold(False)
            codes = [first.process.wait(), second.process.wait()]
    assert codes == [0, 0], (first.log.read_text()[-2000:], second.log.read_text()[-2000:])
    statuses = check(suite, store)
    assert statuses == {"FINISHED": trials}, statuses
    return {
        "trials": trials,
        "by driver": [_done(run) for run in (first, second)],
        "seconds": round(time.monotonic() - began),
    }


def stops(folder: Path, trials: int = 12, seconds: float = 75) -> Report:
    """Suspends a worker for a while, and then suspends it for good. Trials have a time limit."""
    suite, store = write_suite(folder, trials, trial_timeout=seconds + 15), sqlite(folder)
    began = time.monotonic()
    with driver(suite, store, "--executor", "local", "--workers", "1", held=True) as run:
        for number in range(2):
            assert run.next_held() is not None, run.log.read_text()[-3000:]
            (worker,) = run.workers()
            worker.suspend()
            run.release()
            if not number:
                time.sleep(seconds)
                worker.resume()
        assert run.next_held() is not None, run.log.read_text()[-3000:]
        run.hold(False)
        code = run.process.wait()
    log = run.log.read_text()
    assert code == 1, log[-3000:]
    silent = [line for line in log.splitlines() if "does not answer" in line]
    assert len(silent) == 2, log[-3000:]
    by_status = Counter((str(record.status), record.tags.get("failure", "")) for record in records(store))
    assert by_status == {("FINISHED", ""): trials - 1, ("FAILED", "timeout"): 1}, by_status
    return {
        "trials": trials,
        "stopped for": seconds,
        "runs by status": {" ".join(key).strip(): value for key, value in by_status.items()},
        "said": silent[0],
        "seconds": round(time.monotonic() - began),
    }


def two_drivers(folder: Path, trials: int = 60, workers: int = 2) -> Report:
    """Starts two drivers at once on an empty store and checks that no trial runs twice."""
    suite, store = write_suite(folder, trials), sqlite(folder)
    options = ("--executor", "local", "--workers", str(workers))
    began = time.monotonic()
    with (
        driver(suite, store, *options, name="one") as first,
        driver(suite, store, *options, name="two") as second,
    ):
        codes = [first.process.wait(), second.process.wait()]
    assert codes == [0, 0], (first.log.read_text()[-2000:], second.log.read_text()[-2000:])
    statuses = check(suite, store)
    assert statuses == {"FINISHED": trials}, statuses
    shares = [_done(run) for run in (first, second)]
    assert min(shares) > 0
    assert sum(shares) == trials
    for run in (first, second):
        no_secret_words(run.log)
    return {"trials": trials, "by driver": shares, "seconds": round(time.monotonic() - began)}


def many_writers(folder: Path, trials: int = 96, drivers: int = 8) -> Report:
    """Starts several drivers at once, each with one worker, on a SQLite store that does not exist yet."""
    suite, store = write_suite(folder, trials), sqlite(folder)
    began = time.monotonic()
    with ExitStack() as stack:
        runs = [
            stack.enter_context(
                driver(suite, store, "--executor", "local", "--workers", "1", name=f"driver{i}")
            )
            for i in range(drivers)
        ]
        codes = [run.process.wait() for run in runs]
    assert set(codes) == {0}, codes
    statuses = check(suite, store)
    assert statuses == {"FINISHED": trials}, statuses
    for run in runs:
        no_secret_words(run.log)
    return {
        "trials": trials,
        "by driver": [_done(run) for run in runs],
        "seconds": round(time.monotonic() - began),
    }


def _done(run: Driver) -> int:
    return run.log.read_text().count("✓")
