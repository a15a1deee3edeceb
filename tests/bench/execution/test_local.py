"""Tests worker processes. For example, a crash costs one trial, and an interrupt leaves no process behind."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import termios
import time
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tensorbench.execution import driver, local
from tensorbench.execution.local import Local
from tensorbench.execution.perform import Event
from tensorbench.execution.worker import Slot
from tensorbench.methods import UserError
from tensorbench.store.store import Store

from ...fixtures import NewStore
from ..programs import FORKS
from ..services import driver as program
from ..toy_runs import LONG, SHORT, raising, run_on
from ..toy_suites import plan, write

#: A training that reports more progress than a pipe can hold, so the worker waits until the driver reads.
TALKATIVE = {"batch_size": 16, "steps": 400}


pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def workers() -> Any:
    """An executor with two workers that tests share. Tests may kill the workers.

    The workers are forks, which need no imports. So are those of other executors while this one lives. The
    program, which a test below runs, spawns its workers.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "get_context", lambda _: FORKS)
        with Local([Slot(f"cpu/{i}", "cpu", 1) for i in range(2)]) as place:
            place.prepare(list(plan(seeds=[0, 1]).trials))
            yield place


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "WAIT", 0.0)


def test_every_trial_runs_once_and_workers_report_their_place(store: Store, workers: Local) -> None:
    longer = {"method": "head_only", "training": {**SHORT, "steps": 4}}
    made = plan(methods=["lora", longer], seeds=[0, 1], training=SHORT)
    events = run_on(workers, store, made)
    assert sorted(e.trial.id for e in events if e.kind == "finished") == sorted(t.id for t in made.trials)
    assert {record.status for record in store.records()} == {"FINISHED"}
    for record in store.records():
        assert record.tags["provenance.threads"] == "1"
    assert {event.worker for event in events} <= {"cpu/0", "cpu/1"}
    # The longest trials start first.
    assert next(e for e in events if e.kind == "started").trial.method["method"] == "head_only"


def test_workers_on_a_cpu_run_their_trials_at_the_same_time(store: Store, workers: Local) -> None:
    busy: list[int] = []

    def count(event: Event) -> None:
        busy.append(sum(worker.trial is not None for worker in workers._workers))

    run_on(workers, store, plan(methods=["lora"], seeds=[0, 1, 2, 3], training=SHORT), notify=count)
    assert max(busy) == 2


def test_a_worker_that_dies_while_it_sends_its_result_is_a_loss(store: Store, workers: Local) -> None:
    # As if memory runs out while the worker sends a result that is larger than the pipe.
    large = {"method": "tenslora", "variant": "qkv_depth", "ranks": [20] * 4}
    made = plan(methods=[large], budgets=[], training=SHORT)
    left = [1]

    def notify(event: Event) -> None:
        if event.kind == "started" and left[0]:
            left[0] -= 1
            worker = next(w for w in workers._workers if w.trial)
            waiting = array("i", [0])
            while waiting[0] < 2**16:
                fcntl.ioctl(worker.link.fileno(), termios.FIONREAD, waiting)
                time.sleep(0.05)
            worker.process.kill()
            worker.process.join()

    kinds = [event.kind for event in run_on(workers, store, made, notify=notify) if event.kind != "progress"]
    assert kinds == ["started", "lost", "started", "finished"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ConnectionResetError()])
def test_an_error_of_who_listens_is_not_taken_for_the_worker_s(
    store: Store, workers: Local, error: OSError
) -> None:
    with pytest.raises(type(error)) as raised:
        run_on(workers, store, plan(training=SHORT), notify=raising(error))
    assert raised.value is error
    assert [record.status for record in store.records()] == ["KILLED"]


def test_a_trial_that_ends_its_worker_each_time_is_lost_and_the_others_go_on(
    store: Store, workers: Local
) -> None:
    made = plan(seeds=[0, 1], training=TALKATIVE)

    def notify(event: Event) -> None:
        if event.kind == "progress" and event.trial.seed == 0:
            worker = next(w for w in workers._workers if w.trial and w.trial.id == event.trial.id)
            os.kill(worker.process.pid or 0, signal.SIGKILL)

    events = run_on(workers, store, made, notify=notify)
    assert sorted(event.kind for event in events if event.ending) == ["finished", "lost", "lost", "lost"]
    statuses = sorted((record.status, record.tags.get("failure")) for record in store.records())
    assert statuses == [("FINISHED", None), *[("KILLED", "lost")] * 3]
    assert not [record for record in store.records() if record.status == "KILLED" and record.settled]


def test_a_later_preparation_checks_too_and_outlasts_a_worker_that_died_idle() -> None:
    made = plan()
    changed = made.trials[0].model_copy(update={"weights_hash": "0" * 16})
    with Local([Slot("cpu/0", "cpu", 1)]) as place:
        place.prepare(list(made.trials))
        (worker,) = place._workers
        worker.process.kill()
        worker.process.join()
        place.prepare(list(made.trials))
        assert not any(worker.process.is_alive() for worker in place._workers), "nothing was to be prepared"
        with pytest.raises(UserError, match="changed"):
            place.prepare([changed])


# --- a worker's memory ---


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits it")
def test_a_trial_beyond_its_worker_s_memory_fails_and_the_others_go_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "get_context", lambda _: FORKS)
    made = plan(methods=["lora", "head_only"], training=SHORT)
    by_method = {trial.method["method"]: trial for trial in made.trials}
    lora, head = by_method["lora"], by_method["head_only"]
    # The rank exceeds what a plan accepts: one gigabyte per layer.
    hungry = lora.model_copy(update={"method": {**lora.method, "rank": 2**23}})
    rows = tuple(
        row.model_copy(update={"trials": {0: hungry.id}}) if lora.id in row.trials.values() else row
        for row in made.rows
    )
    with Local([Slot("cpu/0", "cpu", 1, memory=2048)]) as place:
        place.prepare([head])
        (process,) = place.processes()
        events = run_on(place, store, replace(made, rows=rows, trials=(hungry, head)))
        assert place.processes() == [process], "the worker died for it"
    assert [event.kind for event in events if event.ending] == ["failed", "finished"]
    failed, finished = store.records()
    assert (failed.trial_id, failed.status, failed.tags["failure"]) == (hungry.id, "FAILED", "out of memory")
    assert "can't allocate memory" in failed.tags["failure_message"]
    assert (finished.trial_id, finished.status) == (head.id, "FINISHED")


# --- stopping the program ---


def test_a_signal_to_all_processes_closes_what_runs_and_leaves_none(
    tmp_path: Path, new_store: NewStore
) -> None:
    # A terminal signals the whole process group on Ctrl-C, and so does SLURM before the time limit.
    suite, uri = write(tmp_path, seeds=[0], training=LONG), new_store(tmp_path)
    options = ("--executor", "local", "--workers", "1")
    with program(suite, uri, *options, held=True) as run:
        assert run.next_held() is not None, run.output()
        children = psutil.Process(run.process.pid).children(recursive=True)
        os.killpg(run.process.pid, signal.SIGTERM)
        out = run.output()
        psutil.wait_procs(children)
    assert run.process.returncode == 130, out
    assert "Traceback" not in out
    opened = Store.existing(uri, "toy")
    assert [record.status for record in opened.records()] == ["KILLED"]
    assert not opened.running()
