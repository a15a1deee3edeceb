"""Tests the time limits of trials, and the detection of workers that give no sign of life."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from tensorbench.cli.progress import RunDisplay
from tensorbench.execution import local, watch
from tensorbench.execution.estimate import Pace, Workload
from tensorbench.execution.local import Local
from tensorbench.execution.perform import Event
from tensorbench.execution.watch import Limits, Silence, Watch
from tensorbench.execution.worker import Slot
from tensorbench.methods import UserError
from tensorbench.methods.validation import validate
from tensorbench.plan.recipe import Setting
from tensorbench.plan.rows import Plan
from tensorbench.plan.suite import Suite
from tensorbench.plan.suite_rows import TaskRow
from tensorbench.records.measures import Measure
from tensorbench.records.record import Record
from tensorbench.records.words import Status
from tensorbench.run.search.chooser import Batch
from tensorbench.store.store import Store

from ...fixtures import NewStore
from ...messages import naming
from ..programs import FORKS
from ..toy_runs import LONG, run_on, timed
from ..toy_suites import VISION, plan, write

#: The hardware of a worker, as its provenance has it, and as the tags of a run have it.
H100 = {"gpu": "H100", "cpu": "EPYC", "threads": "8", "slots": "1"}
ON_H100 = {f"provenance.{name}": value for name, value in H100.items()}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replaces the clock of watches by a list, whose only entry is the time in seconds. Tests set it."""
    now = [1000.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    return now


def listen(watched: Watch, clock: list[float], seconds: int, *, answering: bool = False) -> list[Silence]:
    """Lets a watch listen once a second for `seconds`, and returns the silences that it reports.

    If `answering`, the worker gives a sign of life every second.
    """
    silences = []
    for _ in range(seconds):
        clock[0] += 1
        watched.listen(at_work=True)
        if answering:
            watched.answered()
        if silence := watched.silence():
            silences.append(silence)
    return silences


def test_a_silent_worker_is_reported_repeatedly(clock: list[float]) -> None:
    watched = Watch(None)
    assert listen(watched, clock, 29) == []
    silences = listen(watched, clock, 46)
    assert [silence.seconds for silence in silences] == [30, 35, 40, 45, 50, 55, 60, 65, 70, 75]
    assert not any(silence.answers for silence in silences)
    watched.progressed()
    assert listen(watched, clock, 29) == []


def test_a_trial_without_progress_is_reported_if_its_worker_answers(clock: list[float]) -> None:
    watched = Watch(None)
    silences = listen(watched, clock, 61, answering=True)
    assert silences == [Silence(60, answers=True)]


def test_time_while_the_driver_was_stopped_does_not_count_as_silence(clock: list[float]) -> None:
    watched = Watch(100)
    clock[0] += 10**4
    watched.listen(at_work=True)
    assert (watched.late, watched.silence()) == (False, None)
    # The start-up of a worker does not count either.
    listening = Watch(1)
    for _ in range(100):
        clock[0] += 1
        listening.listen(at_work=False)
    assert not listening.late
    listen(listening, clock, 2)
    assert listening.late


def test_a_time_limit_may_be_a_multiple_of_what_such_trials_took() -> None:
    made = plan(methods=["lora", "head_only"], training={"batch_size": 16, "steps": 100})
    by_method = {row.method: row.trials[0] for row in made.rows}
    lora, head = (next(t for t in made.trials if t.id == by_method[name]) for name in ("LoRA", "head only"))
    (row,) = [row for row in made.rows if row.method == "LoRA"]
    stored = timed(row, 20.0, ON_H100)
    limits = Limits("5x", made, [stored])
    assert limits.begin(lora, H100) == 5 * 100 * 2.0
    assert limits.begin(head, H100) is None
    limits.learn(head, Record(status=Status.FINISHED, metrics={Measure.SECONDS: 1.0, Measure.STEPS: 100.0}))
    # Even a short trial gets time to load its backbone.
    assert limits.begin(head, H100) == watch.LEAST
    assert Limits(7.0, made, []).begin(head, H100) == 7.0
    assert Limits(None, made, [stored]).begin(lora, H100) is None


@pytest.mark.parametrize(
    "elsewhere", [{**H100, "slots": "8"}, {**H100, "gpu": "NVIDIA T4"}, {"cpu": "EPYC", "threads": "1"}]
)
def test_no_limit_comes_from_trials_on_other_hardware(elsewhere: dict[str, str]) -> None:
    made = plan(methods=["lora"], training={"batch_size": 16, "steps": 100})
    (trial,), (row,) = made.trials, made.rows
    stored = timed(row, 1.0, ON_H100)
    limits = Limits("5x", made, [stored])
    assert limits.begin(trial, elsewhere) is None
    # What it took there is a limit for trials there alone.
    limits.learn(
        trial, Record(status=Status.FINISHED, metrics={Measure.SECONDS: 400.0, Measure.STEPS: 100.0})
    )
    assert limits.begin(trial, elsewhere) == 5 * 400
    assert limits.begin(trial, H100) == watch.LEAST
    # A forecast, too, takes times of the named device, if it is told of one.
    workload = Workload("LoRA", row.backbone, row.task)
    assert Pace(made, [stored], device=elsewhere.get("gpu", "EPYC")).stored == (
        elsewhere.get("gpu") == "H100"
    )
    assert Pace(made, [stored], device="H100").seconds(trial, workload) == 10


def test_a_task_of_unstated_size_has_the_steps_of_its_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskRow, "train_examples", lambda row, task: None)
    made = plan(training={"batch_size": 16, "epochs": 1}, seeds=[0, 1])
    first, second = made.trials
    limits = Limits("5x", made, [])
    measures = {Measure.SECONDS: 200.0, Measure.STEPS: 100.0, Measure.TRAIN_EXAMPLES: 1600.0}
    limits.begin(first, H100)
    limits.learn(first, Record(status=Status.FINISHED, metrics=measures))
    assert limits.begin(second, H100) == 5 * 200


def test_times_of_stored_trials_limit_those_of_other_settings() -> None:
    made = plan(training={"batch_size": 16, "steps": 100})
    (cell,) = made.cells
    batch = Batch("toy")
    for rate in (1e-3, 1e-2):
        setting = Setting(lr=rate)
        batch.add(cell, [cell.trial(9, "validation", setting=setting)], note=setting.label)
    made = Plan(made.suite, tuple(batch.rows), tuple(batch.trials), tuple(batch.cells))
    first, second = made.rows
    (other,) = [trial for trial in made.trials if trial.id in second.trials.values()]
    assert first.method != second.method
    assert Limits("5x", made, [timed(first, 20.0, ON_H100)]).begin(other, H100) == 5 * 100 * 2.0


@pytest.mark.parametrize(("timeout", "read"), [(60, 60.0), ("90.5", 90.5), ("5x", "5x"), (None, None)])
def test_a_suite_says_how_long_a_trial_may_take(timeout: Any, read: Any) -> None:
    assert validate(Suite, {**VISION, "trial_timeout": timeout}, "toy").trial_timeout == read


@pytest.mark.parametrize("timeout", [0, -1, "x", "5 x", "soon", float("inf")])
def test_invalid_time_limits_are_refused(timeout: Any) -> None:
    with pytest.raises(UserError, match=naming("trial_timeout", "multiple")):
        validate(Suite, {**VISION, "trial_timeout": timeout}, "toy")


def test_inline_refuses_to_end_trials_and_says_so_of_a_suite_s_limit(
    tmp_path: Path, new_store: NewStore, call: Callable[..., Any]
) -> None:
    changes = {"methods": ["head_only"], "training": {"batch_size": 16, "steps": 1}}
    uri, suite = new_store(tmp_path), write(tmp_path, trial_timeout="5x", **changes)
    ended = call("run", suite, "--store", uri)
    assert ended.code == 0
    assert re.search(naming("trial_timeout", "--executor inline"), ended.err)
    refused = call("run", suite, "--store", uri, "--trial-timeout", "5x")
    assert refused.code == 2
    assert re.search(naming("--trial-timeout", "--executor inline", "local, ray"), refused.err)
    wrong = call("run", suite, "--store", uri, "--executor", "local", "--trial-timeout", "soon")
    assert (wrong.code, bool(re.search("trial.timeout", wrong.err))) == (2, True)


def test_off_a_terminal_a_silence_is_one_line(tmp_path: Path) -> None:
    made = plan()
    with (tmp_path / "log").open("w+") as file:
        with RunDisplay(Console(file=file, width=100), made, 1) as show:
            for seconds in (30, 35, 75):
                show(Event(made.trials[0], "silent", "cpu/0", silence=Silence(seconds, answers=False)))
        file.seek(0)
        (line,) = file.read().splitlines()
    assert line.endswith(": its worker does not answer: 30 s")


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Local, psutil.Process]]:
    """A local executor, and the process of its only worker.

    The process has been suspended, before the worker prepared any data or backbone.
    """
    monkeypatch.setattr(watch, "SILENT", 0.5)
    monkeypatch.setattr(watch, "DEAF", 0.0)
    monkeypatch.setattr(local, "get_context", lambda _: FORKS)
    with Local([Slot("cpu/0", "cpu", 1)]) as place:
        worker = place._start()
        while not worker.ready:
            local.wait([worker.link])
            assert place._heard(worker, lambda event: None)
        (process,) = place.processes()
        process.suspend()
        yield place, process


@pytest.mark.processes
def test_a_worker_stopped_while_preparing_is_reported(stopped: tuple[Local, psutil.Process]) -> None:
    place, process = stopped
    made = plan()
    events: list[Event] = []

    def go_on(event: Event) -> None:
        events.append(event)
        process.resume()

    place.prepare(list(made.trials), go_on)
    assert events[0].trial == made.trials[0]
    assert events[0].silence is not None
    assert (events[0].silence.preparing, events[0].silence.answers) == (True, False)


@pytest.mark.processes
def test_a_worker_that_prepares_and_gives_no_sign_of_life_is_given_up_at_the_limit(
    stopped: tuple[Local, psutil.Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, process = stopped
    monkeypatch.setattr(watch, "LEAST", 0.0)
    with pytest.raises(UserError, match="trial_timeout"):
        place.prepare(list(plan().trials), timeout=0.5)
    place.stop()
    assert not process.is_running()


@pytest.mark.processes
@pytest.mark.parametrize("how", ["endless", "stopped"])
def test_a_trial_that_never_ends_is_ended_and_has_failed(
    store: Store, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(watch, "SILENT", 0.5)
    # A working process shows signs of life, however rarely on a busy machine; a stopped one shows none.
    monkeypatch.setattr(watch, "DEAF", 10**9 if how == "endless" else 0.0)
    monkeypatch.setattr(watch, "IDLE", 10**9)
    monkeypatch.setattr(local, "get_context", lambda _: FORKS)
    made = plan(
        methods=["head_only", {"method": "lora", "training": {"steps": 2}}], training=LONG, trial_timeout=1000
    )

    def end(event: Event) -> None:
        worker = next((candidate for candidate in place._workers if candidate.trial == event.trial), None)
        if worker is None or event.trial != made.trials[0]:
            return
        if event.progress is not None and how == "stopped":
            os.kill(worker.process.pid or 0, signal.SIGSTOP)
        elif event.progress is not None or event.kind == "silent":
            worker.watch.limit = 0.0

    with Local([Slot("cpu/0", "cpu", 1)]) as place:
        place.prepare(list(made.trials))
        (process,) = place.processes()
        events = run_on(place, store, made, notify=end)
        assert not psutil.pid_exists(process.pid)
    assert [event.kind for event in events if event.ending] == ["failed", "finished"]
    # On a busy machine the next worker may be silent too.
    assert (how == "stopped") == (events[0].trial in [e.trial for e in events if e.kind == "silent"])
    bad, good = store.records()
    assert (bad.status, bad.tags["failure"], good.status) == ("FAILED", "timeout", "FINISHED")
    assert "trial_timeout" in bad.tags["failure_message"]
    assert bad.score is None
