"""Tests the checks before any trial starts: of slots, of contradictory options, and of disk and memory."""

from __future__ import annotations

import importlib
import os
import re
import sys
from abc import abstractmethod
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tensorbench.execution import executors, local, make_executor, worker
from tensorbench.execution.estimate import check_disk, check_memory
from tensorbench.execution.inline import Inline
from tensorbench.execution.local import local_slots
from tensorbench.execution.perform import Event, Report, ended
from tensorbench.execution.place import Place
from tensorbench.execution.worker import Slot
from tensorbench.machine.cards import VISIBLE
from tensorbench.machine.memory import MIB, available_mib
from tensorbench.methods import UserError
from tensorbench.plan.rows import Plan
from tensorbench.plan.trial import Trial
from tensorbench.records.record import Record, failed
from tensorbench.records.words import Status, Tag
from tensorbench.store.store import Store
from tensorbench.training.trial import Resources

from ...messages import naming
from ..toy_runs import run_on
from ..toy_suites import plan


def test_cores_are_divided_among_workers() -> None:
    cores = len(os.sched_getaffinity(0))
    assert local_slots("cpu", None, None) == [Slot(f"cpu/{i}", "cpu", 1, "", cores) for i in range(cores)]
    assert local_slots("cpu", 1, None) == [Slot("cpu/0", "cpu", cores)]
    assert [slot.threads for slot in local_slots("cpu", 2 * cores, None)] == [1] * 2 * cores


@pytest.mark.parametrize(
    ("visible", "count", "cards"),
    [
        (None, 2, ["0", "1"]),
        ("3, 5", 2, ["3", "5"]),
        ("GPU-a,GPU-b", 2, ["GPU-a", "GPU-b"]),
        ("3,-1,5", 1, ["3"]),
        # Of several slices, torch counts one.
        ("MIG-a,MIG-b,MIG-c", 1, ["MIG-a", "MIG-b", "MIG-c"]),
    ],
)
def test_every_worker_sees_its_own_gpu_alone(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int, cards: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv(VISIBLE, raising=False)
    if visible:
        monkeypatch.setenv(VISIBLE, visible)
    slots = local_slots("cuda", None, 2)
    assert [slot.name for slot in slots] == [f"cuda:{i % len(cards)}/{i}" for i in range(2 * len(cards))]
    assert [slot.card for slot in slots] == cards * 2
    assert {(slot.device, slot.sharing) for slot in slots} == {("cuda:0", 2)}
    with pytest.raises(UserError, match=naming("--workers", 3, 2, 1, "GPU")):
        local_slots("cuda:0", 3, 2)
    for slot in slots:
        with local._environment(slot, {}):
            assert os.environ[VISIBLE] == slot.card
    assert os.environ.get(VISIBLE) == visible


def test_every_gpu_has_its_workers_and_every_worker_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    # Four trials run on two simulated GPUs. Each waits until all of them run, and then reports its GPU.
    trials = plan(seeds=range(4)).trials
    forks = get_context("fork")
    all_at_work = forks.Barrier(len(trials))

    def meet(trial: Trial, resources: Resources, report: Report, name: str, **_: object) -> None:
        all_at_work.wait()
        tags = {Tag.FAILURE_MESSAGE: os.environ[VISIBLE]}
        report(ended(trial, name, Record(status=Status.FINISHED, tags=tags)))

    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(local, "get_context", lambda _: forks)
    monkeypatch.setattr(worker, "refusal", lambda device: "")
    monkeypatch.setattr(worker, "report_trial", meet)
    events: list[Event] = []
    with make_executor(Place("local", slots_per_device=2)) as place:
        for trial in trials:
            place.submit(trial)
        assert place.free == 0
        while sum(event.ending is not None for event in events) < len(trials):
            place.step(events.append)
    where = {event.worker: event.ending.tag(Tag.FAILURE_MESSAGE) for event in events if event.ending}
    assert where == {f"cuda:{i % 2}/{i}": str(i % 2) for i in range(4)}


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (Place("locale"), "'locale'.*'local'"),
        (Place("inline", workers=2), "--workers 2"),
        (Place("inline", worker_memory=9999), "--worker-memory .*accepted: --workers$"),
        (Place("local", device="cpu", slots_per_device=2), "--slots-per-device"),
        (Place("local", ray_address="auto"), "--ray-address .*--worker-memory"),
        (Place("local", worker_memory=100), naming("--worker-memory", 100, 512)),
        # More bytes than the system can represent.
        (Place("local", worker_memory=2**44), f"--worker-memory {2**44}: accepted are 512 to "),
    ],
)
def test_options_that_do_not_go_together_are_refused(place: Place, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_executor(place)


@pytest.mark.parametrize("executor", ["inline", "local", "ray"])
@pytest.mark.parametrize("field", ["workers", "slots_per_device"])
def test_no_worker_is_none_of_the_choices(executor: str, field: str) -> None:
    for value in (0, 1.5, "2"):
        with pytest.raises(UserError, match=naming(field, 1, value)):
            Place(executor, **{field: value})  # type: ignore[arg-type]


def test_a_place_of_another_type_is_refused() -> None:
    with pytest.raises(UserError, match=naming("place", "Place(executor='local')", "{'executor': 'local'}")):
        make_executor({"executor": "local"})  # type: ignore[arg-type]


Brings = Callable[[object], None]


@pytest.fixture
def brings(monkeypatch: pytest.MonkeyPatch) -> Brings:
    """Gives tests a function that lets a plug-in bring an executor `batch`."""

    def brought(value: object) -> None:
        point = SimpleNamespace(name="batch", value="batch:Batch", dist=None, load=lambda: value)
        monkeypatch.setattr(executors(), "_plugins", {"batch": [point]})

    return brought


def test_a_plug_in_brings_an_executor(brings: Brings) -> None:
    class Batch(Inline):
        options = frozenset({"worker_memory"})

    brings(Batch)
    assert isinstance(make_executor(Place("batch", worker_memory=1000)), Batch)
    with pytest.raises(UserError, match=naming("--workers", "--worker-memory")):
        make_executor(Place("batch", workers=1))
    brings(dict)
    with pytest.raises(UserError, match=r"executor .batch.*Executor"):
        make_executor(Place("batch"))


def broken(*_: object) -> None:
    raise KeyError("x")


@abstractmethod
def lacking() -> None: ...


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": lacking}, "does not define step"),
        ({"slots": None}, naming("slots", None)),
        ({"open": classmethod(lambda kind, place: None)}, naming("open", None)),
        ({"open": classmethod(broken)}, "KeyError: 'x'"),
        ({"__init__": lambda self, *_: None}, r"super\(\).__init__\(device, saving\)"),
    ],
)
def test_an_executor_that_is_not_whole_names_its_plug_in(
    brings: Brings, changes: dict[str, Any], message: str
) -> None:
    brings(type("Batch", (Inline,), changes))
    with pytest.raises(UserError, match=rf"executor 'batch'.*{message}"):
        make_executor(Place("batch", "cpu"))


@pytest.mark.parametrize("name", ["_prepare", "submit", "step"])
def test_an_executor_that_raises_names_its_plug_in(brings: Brings, store: Store, name: str) -> None:
    brings(type("Batch", (Inline,), {name: broken}))

    def run(made: Plan) -> None:
        with make_executor(Place("batch", "cpu")) as place:
            place.prepare(list(made.trials))
            run_on(place, store, made)

    with pytest.raises(UserError, match=r"executor 'batch' of the plug-in 'batch:Batch': KeyError: 'x'"):
        run(plan())


def test_an_executor_that_reports_an_end_twice_is_named(brings: Brings, store: Store) -> None:
    class Batch(Inline):
        def submit(self, trial: Trial) -> None:
            super().submit(trial)
            self.given = trial

        def step(self, report: Report) -> None:
            for _ in range(2):
                report(ended(self.given, "", failed("error", "no", "")))

    brings(Batch)
    made = plan()
    with (
        make_executor(Place("batch", "cpu")) as place,
        pytest.raises(UserError, match=rf"executor 'batch'.*{made.trials[0].id} is failed.*once"),
    ):
        run_on(place, store, made)


@pytest.mark.processes
def test_the_executor_of_the_guide_runs_trials_and_reports_lost_ones(
    brings: Brings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = Path(__file__).parents[3] / "docs" / "guides" / "clusters.md"
    (source,) = re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.S)
    (tmp_path / "processes.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    processes: Any = importlib.import_module("processes")
    made, submitted = plan(), []

    class Killing(processes.Processes):  # type: ignore[misc]
        def submit(self, trial: Trial) -> None:
            super().submit(trial)
            if not submitted:
                self.process.kill()
            submitted.append(trial)

    brings(Killing)
    try:
        with make_executor(Place("batch", "cpu")) as place:
            place.prepare(list(made.trials))
            events = [event.kind for event in run_on(place, store, made)]
    finally:
        del sys.modules["processes"]
    assert [kind for kind in events if kind != "progress"] == ["lost", "started", "finished"]


def test_too_little_disk_or_memory_is_reported_before_the_start(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(seeds=[0, 1])
    check_disk(made, list(made.trials), store)
    check_memory(list(made.trials), 1)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10 * 2**20))
    with pytest.raises(UserError, match=r"10 MiB .* 2 .* 2\d\d "):
        check_disk(made, list(made.trials), store)
    monkeypatch.setattr("tensorbench.execution.estimate.available_mib", lambda: 1e4)
    with pytest.raises(UserError, match=r"1000 .* 4\d\d,\d\d\d MiB .*--workers"):
        check_memory(list(made.trials) * 500, 1000)


def test_memory_is_what_the_control_groups_leave_and_the_cache_of_files_counts_as_free(
    tmp_path: Path,
) -> None:
    groups, own = tmp_path / "cgroup", tmp_path / "own"
    step = groups / "job" / "step"
    step.mkdir(parents=True)

    def limit(group: Path, most: int | str, used: int, cached: int) -> None:
        (group / "memory.max").write_text(f"{most if most == 'max' else int(most) * MIB}\n")
        (group / "memory.current").write_text(f"{used * MIB}\n")
        (group / "memory.stat").write_text(f"anon {(used - cached) * MIB}\ninactive_file {cached * MIB}\n")

    limit(groups / "job", 60, 50, 30)
    limit(step, "max", 50, 30)
    own.write_text("1:cpu:/job\n0::/job/step\n")
    assert available_mib(groups, own) == 40
    limit(step, 55, 50, 30)
    assert available_mib(groups, own) == 35
    # A container sees its own cgroup as the root, and some machines lack these files.
    limit(groups, 20, 10, 5)
    own.write_text("0::/not/here\n")
    assert available_mib(groups, own) == 15
    assert available_mib(groups, tmp_path / "missing") == 15
    assert available_mib(tmp_path / "nowhere", own) > 40
