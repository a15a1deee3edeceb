"""Tests that every trial counts once in suites whose processes are killed, interrupted and started again."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tensorbench.execution.driver import pending
from tensorbench.records.record import latest
from tensorbench.store.store import Store

from .held_programs import await_held, let_all_through, started
from .programs import Program
from .toy_runs import Ran, executed
from .toy_suites import plan, write

pytestmark = pytest.mark.processes

Call = Callable[..., Any]
NewStore = Callable[[Path], str]

METHODS: list[Any] = ["lora", "head_only", {"method": "tenslora", "variant": "att"}]


def begin(ran: Ran, through: int) -> AbstractContextManager[Program]:
    return started(ran.folder, "run", ran.suite, "--store", ran.uri, through=through)


def count(ran: Ran) -> Counter[str]:
    return Counter(record.status for record in ran.store.records())


def stop(ran: Ran, how: signal.Signals, through: int) -> tuple[int, str, Counter[str]]:
    """Starts the suite and sends it the signal `how` during a trial, after `through` trials have finished.

    Returns the exit code, the output, and the number of runs by status.
    """
    with begin(ran, through) as process:
        await_held(process, ran.folder)
        process.send_signal(how)
        out = process.output()
    return process.returncode, out, count(ran)


@dataclass
class Resumed:
    """A suite that was started four times.

    The first start was killed, the second was interrupted, and the last two ran at once and finished it.
    """

    ran: Ran
    #: The exit code and the output of the fourth start.
    second: Any = None
    #: The exit code, the output and the run counts of the first three starts. The keys are "SIGKILL",
    #: "SIGINT" and "last".
    ends: dict[str, tuple[int, str, Counter[str]]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore, call: Call) -> Resumed:
    folder = tmp_path_factory.mktemp("resumed")
    changes: dict[str, Any] = {"methods": METHODS, "seeds": [0, 1]}
    ran = Ran(folder, write(folder, **changes), new_store(folder), plan(**changes))
    history = Resumed(ran)
    history.ends["SIGKILL"] = stop(ran, signal.SIGKILL, 1)
    history.ends["SIGINT"] = stop(ran, signal.SIGINT, 0)
    done = threading.Event()

    def let_go() -> None:
        # Only the trial that the third start holds is left then, so the fourth start has to wait for it.
        while count(ran)["FINISHED"] < len(ran.plan.trials) - 1 and not done.is_set():
            time.sleep(0.1)
        let_all_through(folder)

    with begin(ran, 0) as last:
        await_held(last, folder)
        beside = threading.Thread(target=let_go)
        beside.start()
        try:
            history.second = call("run", ran.suite, "--store", ran.uri)
        finally:
            done.set()
            beside.join()
        out = last.output()
    history.ends["last"] = last.returncode, out, count(ran)
    return history


def test_a_killed_process_leaves_its_trial_running_and_the_next_start_closes_it(resumed: Resumed) -> None:
    code, _, left = resumed.ends["SIGKILL"]
    assert code == -signal.SIGKILL
    assert left["RUNNING"] == 1
    _, out, left = resumed.ends["SIGINT"]
    # The trial's run and the suite's.
    assert "Closed 2 unfinished run(s)" in out
    assert left["RUNNING"] == 0


def test_an_interrupt_closes_the_running_trial_and_exits_130(resumed: Resumed) -> None:
    code, out, left = resumed.ends["SIGINT"]
    assert code == 130
    # The other trial is the one during which the first start was killed.
    assert (left["KILLED"], left["RUNNING"]) == (2, 0)
    assert "stopped; start" in out
    assert "Traceback" not in out


def test_a_second_start_at_once_shares_the_work_and_waits_for_the_rest(resumed: Resumed) -> None:
    assert resumed.second.code == 0, resumed.second.err
    assert "another driver" in resumed.second.out
    assert resumed.second.out.count("✓") == 4


def test_in_the_end_every_trial_has_finished_exactly_once(resumed: Resumed) -> None:
    code, out, _ = resumed.ends["last"]
    assert code == 0, out
    records = resumed.ran.store.records()
    done = Counter(record.trial_id for record in records if record.status == "FINISHED")
    assert done == {trial.id: 1 for trial in resumed.ran.plan.trials}
    assert Counter(record.status for record in records) == {"FINISHED": 6, "KILLED": 2}
    assert pending(resumed.ran.plan, resumed.ran.store.records()) == []


def test_a_resumed_suite_has_the_results_of_one_that_was_never_stopped(
    resumed: Resumed, tmp_path: Path, new_store: NewStore
) -> None:
    made, after = resumed.ran.plan, latest(resumed.ran.store.records())
    straight = Store.create(new_store(tmp_path), "toy")
    trial = made.trials[-1]
    executed(straight, made, [trial])
    (alone,) = straight.records()
    for key in ("score", "score_loss", "selected/validation"):
        assert alone.metrics[key] == after[trial.id].metrics[key]
