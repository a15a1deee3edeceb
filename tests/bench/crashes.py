"""The crash oracle: ends a program by a fault at any of its steps, and checks what every start must leave.

`crashes.py FAULT STEP FOLDER PROGRAM …` is the script that runs a program of the harness with a fault at the
step with number STEP. A step is anything by which a program changes the world outside of its memory: a
statement that writes to a database (`sql`), the end of its transaction (`commit`), a file or folder in FOLDER
that is filled, named or removed (`file`), or an event of a trial (`event`). Steps are counted from 1, and the
script prints each one. With step 0 nothing fails.
"""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NoReturn

import psutil

from tensorbench.records.words import Artifact, Status
from tensorbench.store.artifacts import hashes
from tensorbench.store.claims import PREFIX, SIGN
from tensorbench.store.store import Store
from tests.bench.programs import Program

#: What may happen at a step. The process is `killed`, also on another machine (`killed elsewhere`), or gets a
#: signal (`interrupted`). Or from then on the database is `away`, or disk and database are `full` or
#: `read-only`. Or the step fails once, with an error inside the store (`failed`) or after it was done
#: (`unanswered`). Or the worker of the event's trial is killed (`worker killed`).
Fault = Literal[
    "killed",
    "killed elsewhere",
    "interrupted",
    "away",
    "full",
    "read-only",
    "failed",
    "unanswered",
    "worker killed",
]

#: The faults that end a program, each with its exit codes. A fault of the store is no error if the program
#: has nothing more to store.
FATAL = {
    "killed": {-9},
    "killed elsewhere": {-9},
    "interrupted": {130},
    "away": {0, 1},
    "full": {0, 1},
    "read-only": {0, 1},
}

#: The errors of the disk and of SQLite for persistent faults.
ERRORS = {
    "away": (5, "disk I/O error"),
    "full": (28, "database or disk is full"),
    "read-only": (30, "attempt to write a readonly database"),
}

#: The kinds of steps that each fault can meet. A process may be killed at any.
MEETS: dict[str, set[str]] = {
    "interrupted": {"commit", "file", "event"},
    "away": {"commit"},
    "full": {"commit", "file"},
    "read-only": {"commit", "file"},
    "failed": {"commit"},
    "unanswered": {"commit"},
    "worker killed": {"event"},
}

#: Where `killed elsewhere` happens.
ELSEWHERE = "elsewhere:1:0"


@dataclass(frozen=True)
class Step:
    number: int
    kind: str
    name: str

    def meets(self, fault: Fault) -> bool:
        return self.kind in MEETS.get(fault, {self.kind})


# --- what every start must leave ---


def start(folder: Path, program: str, *arguments: object, fault: Fault = "killed", step: int = 0) -> Program:
    """Runs a program to its end, with a fault at a step. Its output is added to `log` in `folder`."""
    started = Program(Path(__file__), (fault, step, folder, program, *arguments), folder, folder / "log")
    started.wait()
    return started


def steps(folder: Path) -> list[Step]:
    """The steps of the programs that ran in a folder."""
    lines = re.findall(r"^step (\d+) (\w+) (.*)$", (folder / "log").read_text(), re.M)
    return [Step(int(number), kind, name) for number, kind, name in lines]


def check_half(store: Store, bare: bool = False) -> None:
    """Checks that every finished run is complete. With `bare`, adapters may be missing."""
    needed = Artifact.CONFIG, Artifact.PREDICTIONS, *(() if bare else (Artifact.ADAPTER,))
    for record in store.records():
        if record.status == Status.FINISHED:
            assert record.score is not None
            # Reading compares each artifact with its hash.
            assert all(store.read(record, name) for name in needed), record


def check(store: Store, trials: Collection[str]) -> Counter[str]:
    """Checks that each trial finished exactly once, and that its run is complete.

    No run may be open, and no claim, sign of life or unsent record may remain. Returns the number of runs by
    status.
    """
    records = store.records()
    done = Counter(record.trial_id for record in records if record.status == "FINISHED")
    assert done == dict.fromkeys(trials, 1), done
    assert not store.running()
    assert not list(store.client.search_registered_models(f"name LIKE '{PREFIX}.{store.experiment_id}.%'"))
    tags = store.client.get_experiment(store.experiment_id).tags
    assert not [tag for tag in tags if tag.startswith(SIGN)]
    assert not list(store.outbox.glob("*/[!.]*"))
    for record in records:
        if record.status == "FINISHED":
            names = {file.path for file in store.client.list_artifacts(record.run_id)}
            assert names == hashes(record).keys(), record.tags
            assert names == {"adapter.safetensors", "config.json", "predictions.safetensors"}, names
            losses = store.client.get_metric_history(record.run_id, "train/loss")
            numbers = sorted(metric.step for metric in losses)
            assert numbers == list(range(1, int(record.metrics["cost/steps"]) + 1)), numbers
    return Counter(str(record.status) for record in records)


def check_once(folder: Path) -> None:
    """Checks that no trial began again after its record was on the disk."""
    kept: set[str] = set()
    for word, trial in re.findall(r"^(began|kept) (\w+)$", (folder / "log").read_text(), re.M):
        assert word == "kept" or trial not in kept, f"trial {trial} ran again"
        if word == "kept":
            kept.add(trial)


def workers(folder: Path) -> list[psutil.Process]:
    """The workers of programs that ran in a folder, as far as they have not ended."""
    left = []
    for pid in set(re.findall(r"^worker (\d+)$", (folder / "log").read_text(), re.M)):
        with suppress(psutil.NoSuchProcess):
            left.append(psutil.Process(int(pid)))
    return left


# --- the script ---


def _say(*words: object) -> None:
    # In one write, since the process may die at any moment.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class _Steps:
    """Counts the steps of this process and makes the fault happen."""

    def __init__(self, fault: Fault, last: int, folder: Path) -> None:
        self._fault, self._last, self._folder = fault, last, folder
        self._count, self._pid = 0, os.getpid()

    def __call__(self, kind: str, name: str, do: Callable[[], object] = lambda: None) -> None:
        """Counts a step. `do` is what of the step may have happened when the fault does."""
        if os.getpid() != self._pid:
            return
        self._count += 1
        step, fault = Step(self._count, kind, name), self._fault
        _say("step", step.number, kind, name)
        if not self._last or self._count < self._last or not step.meets(fault):
            return
        if fault in ERRORS:
            self._raise(kind, *ERRORS[fault])
        if self._count > self._last:
            return
        if fault in ("killed", "killed elsewhere"):
            if kind != "event":
                do()
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "interrupted":
            signal.raise_signal(signal.SIGINT)
        elif fault == "worker killed":
            do()
        elif fault == "unanswered":
            do()
            self._raise(kind, 5, "the connection was cut")
        elif fault == "failed":
            self._raise(kind, 0, "internal error")

    @staticmethod
    def _raise(kind: str, number: int, text: str) -> NoReturn:
        from sqlalchemy.exc import DataError, OperationalError

        if kind == "file":
            raise OSError(number, text)
        raise (OperationalError if number else DataError)("", {}, sqlite3.OperationalError(text))

    def audit(self, event: str, details: tuple[Any, ...]) -> None:
        if event not in ("os.rename", "shutil.copyfile", "shutil.rmtree"):
            return
        *_, place = map(Path, details[: 1 if event == "shutil.rmtree" else 2])
        if not place.is_relative_to(self._folder) or "schema" in place.parts:
            return

        def half() -> None:
            if event == "shutil.copyfile":
                content = Path(details[0]).read_bytes()
                place.write_bytes(content[: len(content) // 2])

        name = re.sub(r"[0-9a-f]{12,}|(?<=unfinished-)\w+", "ID", str(place.relative_to(self._folder)))
        self("file", f"{event} {name}", half)

    def listen(self) -> None:
        from sqlalchemy import Engine, event

        sys.addaudithook(self.audit)
        changed: dict[Any, str] = {}

        @event.listens_for(Engine, "connect")
        def unsynced(connection: Any, _: object) -> None:
            # A killed process loses nothing, because the system already has the written data.
            if isinstance(connection, sqlite3.Connection):
                connection.execute("PRAGMA synchronous = OFF")

        @event.listens_for(Engine, "before_cursor_execute")
        def statement(connection: Any, cursor: Any, text: str, *_: object) -> None:
            if not re.match(r"\s*(SELECT|PRAGMA|SHOW|WITH)", text, re.I):
                changed[connection] = " ".join(text.split()[:3])
                self("sql", changed[connection])

        @event.listens_for(Engine, "commit")
        def commit(connection: Any) -> None:
            if name := changed.pop(connection, None):
                self("commit", name, connection.connection.commit)


def run(fault: Fault, steps: _Steps, uri: str, executor: str = "inline") -> None:
    """Runs a toy suite of two trials. Prints each trial that began and that is on the disk."""
    from tensorbench.execution import driver, local, make_executor
    from tensorbench.execution.perform import Event
    from tensorbench.execution.place import Place
    from tensorbench.execution.session import session
    from tensorbench.machine import alive
    from tensorbench.records.record import Record
    from tensorbench.store import claims, outbox, writer
    from tests.bench.toy_runs import SHORT
    from tests.bench.toy_suites import plan

    # As long as nothing fails, only steps of the main thread count.
    claims.BEAT, claims.PROBE, driver.WAIT, driver.LOOK = 10.0**9, 0.01, 0.0, 0.0
    driver.FILE_PATIENCE = 0 if fault in ERRORS else 10.0**9
    if fault == "killed elsewhere":
        claims.EXPIRY = 0.0
        for module in (claims, writer):
            module.owner = lambda: ELSEWHERE if steps._last else alive.owner()  # type: ignore[attr-defined]
    local.get_context = lambda _: get_context("fork")  # type: ignore[assignment]
    keep = outbox.Outbox.keep

    def kept(self: outbox.Outbox, record: Record) -> Path:
        folder = keep(self, record)
        if record.status.settled:
            _say("kept", record.trial_id)
        return folder

    outbox.Outbox.keep = kept  # type: ignore[method-assign]
    made = plan(methods=["lora", "head_only"], training=SHORT)
    with (
        session(Store.existing(uri, "toy")) as at_work,
        make_executor(Place(executor, "cpu", workers=1)) as place,
    ):

        def notify(event: Event) -> None:
            if event.kind == "started":
                _say("began", event.trial.id)
            pids = [worker.process.pid for worker in place._workers]
            for pid in pids:
                _say("worker", pid)
            steps(
                "event",
                f"{event.kind} {event.trial.method['method']}",
                lambda: [os.kill(pid, signal.SIGKILL) for pid in pids],
            )

        place.prepare(list(made.trials))
        driver.execute(made, driver.pending(made, at_work.store.records()), at_work, place, notify)


def unpack(fault: Fault, steps: _Steps, uri: str, pack: str) -> None:
    from tensorbench.store.opening import unpack

    unpack(pack, store=uri)


def create(fault: Fault, steps: _Steps, uri: str) -> None:
    """Opens a store as a first start does."""
    Store.create(uri, "toy")


def create_by_mlflow(fault: Fault, steps: _Steps, uri: str) -> None:
    """Opens a store as MLflow alone does."""
    from mlflow.tracking import MlflowClient

    MlflowClient(uri).search_experiments(max_results=1)


def main(fault: Fault, last: int, folder: Path, program: str, *arguments: str) -> None:
    from tensorbench.machine import interrupts
    from tensorbench.methods import UserError

    interrupts.LIMITS = dict.fromkeys(interrupts.SIGNALS, 1000)
    interrupts.install()
    steps = _Steps(fault, last, folder)
    steps.listen()
    try:
        globals()[program](fault, steps, *arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        _say("ended by", error)
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])  # type: ignore[arg-type]
