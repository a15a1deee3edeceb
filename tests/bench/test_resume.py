"""Tests what a user sees of a suite whose starts are killed, interrupted and run beside each other.

`test_crashes.py` tests that every trial counts once, whatever happens.
"""

from __future__ import annotations

import signal
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tensorbench.records.record import latest
from tensorbench.store.store import Store

from ..fixtures import Call, NewStore
from .crashes import check
from .services import driver, wait_until
from .toy_runs import SHORT, Ran, executed
from .toy_suites import plan, write

pytestmark = pytest.mark.processes


SUITE: dict[str, Any] = {"methods": ["lora", "head_only"], "seeds": [0, 1], "training": SHORT}


@dataclass
class Resumed:
    """A suite that was started four times: the last two starts ran at once and finished it."""

    ran: Ran
    #: The exit code, the output, and the number of the suite's trials' runs by status after each start but
    #: the second last.
    killed: tuple[int, str, Counter[str]]
    interrupted: tuple[int, str, Counter[str]]
    last: tuple[int, str, Counter[str]]
    #: The exit code and the output of the start that ran beside the last one.
    beside: Any


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore, call: Call) -> Resumed:
    folder = tmp_path_factory.mktemp("resumed")
    ran = Ran(folder, write(folder, **SUITE), new_store(folder), plan(**SUITE))

    def count() -> Counter[str]:
        return Counter(record.status for record in ran.store.records())

    def stop(how: signal.Signals, through: int) -> tuple[int, str, Counter[str]]:
        with driver(ran.suite, ran.uri, name=how.name, held=True, through=through) as run:
            assert run.next_held() is not None, run.output()
            run.process.send_signal(how)
            return run.process.wait(), run.output(), count()

    killed, interrupted = stop(signal.SIGKILL, 1), stop(signal.SIGINT, 0)
    with driver(ran.suite, ran.uri, name="last", held=True) as last:
        assert last.next_held() is not None, last.output()

        def let_go() -> None:
            # Only the held trial is left then, so the start beside it has to wait for it.
            wait_until(lambda: count()["FINISHED"] == len(ran.plan.trials) - 1, last.process)
            last.hold(False)

        thread = threading.Thread(target=let_go)
        thread.start()
        beside = call("run", ran.suite, "--store", ran.uri)
        thread.join()
        ended = last.process.wait(), last.output(), count()
    return Resumed(ran, killed, interrupted, ended, beside)


def test_a_killed_process_leaves_its_trial_running_and_the_next_start_closes_it(resumed: Resumed) -> None:
    code, _, runs = resumed.killed
    assert (code, runs["RUNNING"]) == (-signal.SIGKILL, 1)
    # The trial's run and the suite's.
    assert "Closed 2 unfinished run(s)" in resumed.interrupted[1]


def test_an_interrupt_closes_the_running_trial_and_exits_130(resumed: Resumed) -> None:
    code, out, runs = resumed.interrupted
    # The other trial is the one during which the first start was killed.
    assert (code, runs["KILLED"], runs["RUNNING"]) == (130, 2, 0)
    assert "stopped; start" in out
    assert "Traceback" not in out


def test_a_second_start_at_once_shares_the_work_and_waits_for_the_rest(resumed: Resumed) -> None:
    assert resumed.beside.code == 0, resumed.beside.err
    assert "another driver" in resumed.beside.out
    assert resumed.beside.out.count("✓") == 2
    code, out, runs = resumed.last
    assert (code, runs) == (0, {"FINISHED": 4, "KILLED": 2}), out
    check(resumed.ran.store, [trial.id for trial in resumed.ran.plan.trials])


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
