"""Measures the processor time and requests of drivers on stores of several sizes.

    python -m tools.benchmarks.scale FOLDER [--store postgres] [--stored 1000 10000] [--drivers 4]

For each size, a store is filled with made-up results of a suite, except for a number of missing trials
(`--trials`). Drivers (`--drivers`), with a number of slots each (`--slots`), then run these trials. The
trials do no work, but their records are written as always, with files and one report of progress. The command
prints processor times (which do not depend on other load of the machine), requests to the server, and
statements to a SQLite file. Each is given for the start (up to the first trial), per trial, for the end, and
for another start on the finished suite. `--store postgres` is an MLflow server over PostgreSQL.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import psutil
import requests
import yaml
from sqlalchemy import Engine, create_engine, event

from tensorbench.execution import EXECUTORS
from tensorbench.execution.executor import Executor
from tensorbench.execution.perform import Event, Report, ended
from tensorbench.execution.place import Place
from tensorbench.plan.make import make_plan
from tensorbench.plan.pairs import Part
from tensorbench.plan.rows import Plan
from tensorbench.plan.suite import load_suite
from tensorbench.plan.trial import Trial
from tensorbench.records.record import Progress
from tensorbench.run.suites import Audience, run_suite
from tensorbench.store.connect import with_driver
from tensorbench.store.mlflow_internals import tables
from tensorbench.store.store import Store
from tensorbench.training.measure import libraries, provenance
from tensorbench.training.saving import PLAIN
from tests.bench.proxy import endpoint_of
from tests.bench.services import Postgres, Server
from tests.stored import TABLES, Result, usual_ending, write
from tools.benchmarks.large_store import SUITE as LARGE

#: A suite of few rows, so that many trials need many seeds.
SUITE = LARGE | {"methods": LARGE["methods"][:3]}

#: The requests to the server by endpoint, and the statements to a SQLite file, that this process has sent.
sent: Counter[str] = Counter()


class Instant(Executor):
    """An executor without training. It ends one trial per step, so that the other slots stay busy."""

    options = frozenset({"workers"})

    def __init__(self, slots: int) -> None:
        super().__init__("cpu", PLAIN)
        self.slots = slots
        self._running: list[Trial] = []
        self._provenance, self._libraries = provenance("cpu"), libraries()

    @classmethod
    def open(cls, place: Place) -> Self:
        return cls(place.workers or 1)

    def _prepare(self, trials: list[Trial], report: Report, limit: float | None) -> None:
        """Does nothing, since no trial reads data or weights."""

    @property
    def free(self) -> int:
        return self.slots - len(self._running)

    def submit(self, trial: Trial) -> None:
        self._running.append(trial)

    def step(self, report: Report) -> None:
        trial = self._running.pop(0)
        report(Event(trial, "started", provenance=self._provenance, libraries=self._libraries))
        report(Event(trial, "progress", progress=Progress(1, 1, 1, [(1, 0.5)], 0.5, 0.5)))
        report(ended(trial, "", usual_ending(1000)))

    def stop(self) -> None:
        self._running = []


class Times(Audience):
    """Takes processor times and counts requests, at the start, the first and last trial, and the end."""

    def __init__(self, services: dict[str, int]) -> None:
        #: The ids of the processes that serve the driver, by name.
        self._services = services
        self.ended: Counter[str] = Counter()
        self._began = self._now()
        self._first: Counter[str] | None = None

    def _now(self) -> Counter[str]:
        times = {f"{name} s": tree_seconds(pid) for name, pid in self._services.items()}
        requests = sent.total() - sent["statements"]
        return Counter({"driver s": time.process_time(), **times, "requests": requests, **sent})

    def watch(self, plan: Plan, count: int, slots: int) -> AbstractContextManager[Report]:
        return nullcontext(self._receive)

    def _receive(self, event: Event) -> None:
        if event.kind == "started":
            self._first = self._first or self._now()
        elif event.kind in ("finished", "elsewhere"):
            self.ended[event.kind] += 1
            self._last = self._now()

    def parts(self) -> dict[str, Counter[str]]:
        """The times and requests of the start, the trials and the end of the run.

        If no trial ran, everything counts as the end.
        """
        done = self._now()
        if self._first is None:
            return {"start": Counter(), "trials": Counter(), "end": done - self._began}
        return {
            "start": self._first - self._began,
            "trials": self._last - self._first,
            "end": done - self._last,
        }


def tree_seconds(pid: int) -> float:
    """The processor time of a process and all its children, including children that have ended."""
    root = psutil.Process(pid)
    return float(sum(sum(process.cpu_times()[:4]) for process in [root, *root.children(recursive=True)]))


def drive(suite: str, store: str, slots: str, services: str) -> None:
    """Runs the suite as one driver and prints its times and requests."""
    EXECUTORS["instant"] = "tools.benchmarks.scale:Instant"
    real = requests.Session.request

    def request(self: requests.Session, method: str, url: str, *args: Any, **named: Any) -> Any:
        sent[endpoint_of(method, url)] += 1
        return real(self, method, url, *args, **named)

    requests.Session.request = request  # type: ignore[assignment, method-assign]
    event.listen(Engine, "before_cursor_execute", lambda *_: sent.update(["statements"]))
    times = Times(json.loads(services))
    run_suite(suite, store=store, place=Place("instant", "cpu", workers=int(slots)), audience=times)
    print(json.dumps({"ended": times.ended, **times.parts()}))


def driven(suite: Path, store: str, drivers: int, slots: int, services: dict[str, int]) -> dict[str, Any]:
    """Runs several drivers at once. Returns their total times and requests at start, per trial and at end."""
    command = [sys.executable, "-m", __spec__.name, "--drive", str(suite), store, str(slots)]
    running = [
        subprocess.Popen([*command, json.dumps(services)], stdout=subprocess.PIPE) for _ in range(drivers)
    ]
    total: dict[str, Counter[str]] = {part: Counter() for part in ("ended", "start", "trials", "end")}
    peak = 0
    for process in running:
        assert process.stdout
        printed = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        assert status == 0, status
        peak = max(peak, used.ru_maxrss)
        for part, values in json.loads(printed).items():
            total[part].update(values)
    trials = total["ended"]["finished"] or 1
    # Every driver measures the same services.
    times = {f"{name} s": 1 / drivers for name in services}
    report: dict[str, Any] = {
        part: {key: float(f"{value * times.get(key, 1):.4g}") for key, value in values.items()}
        for part, values in total.items()
    }
    report["per trial"] = {key: float(f"{value / trials:.4g}") for key, value in report.pop("trials").items()}
    return {**report, "MiB of a driver": round(peak / 1024)}


def fill(folder: Path, stored: int, trials: int) -> tuple[Path, str]:
    """Writes a suite, and a SQLite store with all its results except the last `trials`.

    Returns the suite's file and the store's URI.
    """
    file, uri = folder / "large.yaml", f"sqlite:///{folder / 'mlflow.db'}"
    file.write_text(yaml.safe_dump(SUITE | {"seeds": [0]}))
    of_a_seed = len(make_plan(load_suite(file)).trials)
    seeds = list(range(-(-(stored + trials) // of_a_seed)))
    file.write_text(yaml.safe_dump(SUITE | {"seeds": seeds}))
    plan = make_plan(load_suite(file))
    there = {trial.id for trial in plan.trials[:-trials]}
    for seed in seeds:
        # All at once would take several GiB.
        part = plan.select(Part(seeds=(seed,)))
        write(uri, part, lambda trial, row: Result(score=0.5) if trial.id in there else None)
    return file, uri


def copy(source: str, server: str, database: str) -> None:
    """Copies the runs of a SQLite store into the empty database behind a server."""
    experiment = Store.existing(source, SUITE["name"]).experiment_id
    assert Store.create(server, SUITE["name"]).experiment_id == experiment
    with create_engine(source).connect() as rows, create_engine(with_driver(database)).begin() as target:
        for table in map(tables().__getitem__, TABLES):
            stored = rows.execution_options(yield_per=10_000).execute(table.select())
            for part in stored.mappings().partitions():
                target.execute(table.insert(), list(map(dict, part)))


@contextmanager
def opened(folder: Path, kind: str, stored: int, trials: int) -> Iterator[tuple[Path, str, dict[str, int]]]:
    """Provides the suite's file, the URI of the filled store, and the ids of the processes behind it."""
    folder.mkdir()
    # PostgreSQL's user must be able to enter.
    folder.chmod(0o755)
    suite, uri = fill(folder, stored, trials)
    if kind == "sqlite":
        yield suite, uri, {}
        return
    with ExitStack() as stack:
        postgres = Postgres(folder / "postgres")
        stack.callback(postgres.stop)
        server = Server(postgres.uri, folder)
        stack.callback(server.stop)
        copy(uri, server.uri, postgres.uri)
        first_line = (folder / "postgres" / "data" / "postmaster.pid").read_text().split()[0]
        yield suite, server.uri, {"server": server.process.pid, "database": int(first_line)}


def main() -> None:
    if sys.argv[1:2] == ["--drive"]:
        drive(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="Must not exist.")
    parser.add_argument("--store", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--stored", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--drivers", type=int, default=1)
    parser.add_argument("--slots", type=int, default=16)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    options.folder.chmod(0o755)
    for stored in options.stored:
        folder = options.folder.absolute() / str(stored)
        with opened(folder, options.store, stored, options.trials) as (suite, uri, services):
            for title, drivers in (("run", options.drivers), ("again", 1)):
                report = driven(suite, uri, drivers, options.slots, services)
                print(json.dumps({"stored": stored, title: report}, indent=1), flush=True)


if __name__ == "__main__":
    main()
