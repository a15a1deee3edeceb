"""Tests full, occupied and broken devices: what becomes of their trials and slots, and of other trials.

Workers on the CPU take the place of workers on GPUs. `VISIBLE` says in each of them which GPU it stands for.
"""

from __future__ import annotations

import os
import re
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import tensorbench.execution.health
import tensorbench.execution.inline
import tensorbench.execution.perform
import tensorbench.machine.cards
from tensorbench.execution import driver, local, worker
from tensorbench.execution.estimate import PROCESS_MIB, activation_mib, device_mib
from tensorbench.execution.health import refusal
from tensorbench.execution.inline import Inline
from tensorbench.execution.local import REFUSED, Local
from tensorbench.execution.perform import Event
from tensorbench.execution.place import Place
from tensorbench.execution.worker import Slot
from tensorbench.machine import mps
from tensorbench.machine.cards import VISIBLE, held
from tensorbench.methods import UserError
from tensorbench.plan.rows import Plan
from tensorbench.records.record import lost
from tensorbench.store.store import Store
from tensorbench.training.saving import Saving
from tensorbench.training.trial import DataWarning, Resources

from ...messages import naming
from ..toy_runs import SHORT, executed, raising, run_on
from ..toy_suites import plan

pytestmark = pytest.mark.processes

FULL = torch.OutOfMemoryError("CUDA out of memory")
ASSERT = RuntimeError("CUDA error: device-side assert triggered")


@pytest.fixture(autouse=True)
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are forks of this process, so they have its mocks. Lost trials run again at once."""
    monkeypatch.setattr(local, "get_context", lambda _: get_context("fork"))
    monkeypatch.setattr(driver, "WAIT", 0.0)


def cards(count: int, sharing: int = 1) -> list[Slot]:
    return [
        Slot(f"cuda:{card}/{card * sharing + i}", "cpu", 1, str(card), sharing)
        for card in range(count)
        for i in range(sharing)
    ]


def on(card: int, broken: Callable[..., Any], real: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is `broken` in the workers of one card, and as it is everywhere else."""
    return lambda *rest: (broken if os.environ.get(VISIBLE) == str(card) else real)(*rest)


def run(store: Store, made: Plan, slots: list[Slot]) -> tuple[list[Event], Local]:
    with Local(slots) as place:
        place.prepare(list(made.trials))
        return run_on(place, store, made), place


def statuses(store: Store) -> Counter[str]:
    return Counter(str(record.status) for record in store.records())


@pytest.mark.parametrize(
    ("card", "examination", "reason"),
    [
        (0, "refusal", "3 of 80 MiB are free"),
        (1, "refusal", "3 of 80 MiB are free"),
        (1, "refused_precision", "Tesla T4 does not compute bf16"),
    ],
)
def test_a_card_that_cannot_be_used_gets_no_trial(
    store: Store, monkeypatch: pytest.MonkeyPatch, card: int, examination: str, reason: str
) -> None:
    monkeypatch.setattr(worker, examination, on(card, lambda *_: reason, lambda *_: ""))
    made = plan(seeds=range(5), training=SHORT)
    with pytest.warns(UserWarning, match=naming(f"cuda:{card}/{card} ", "no more", reason)):
        events, _ = run(store, made, cards(2))
    assert statuses(store) == {"FINISHED": 5}
    assert {event.worker for event in events} == {f"cuda:{1 - card}/{1 - card}"}


def test_without_a_usable_card_nothing_starts_and_the_reason_is_the_card_s(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "refusal", lambda device: "3 of 80 MiB are free")
    with (
        pytest.warns(UserWarning, match="no more"),
        pytest.raises(UserError, match=naming("cuda:1/1", "3 of 80 MiB")),
    ):
        run(store, plan(seeds=range(4), training=SHORT), cards(2))
    assert not store.records()


def test_a_card_that_is_full_while_trials_load_swallows_no_trial(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first worker prepares the trials, and the second one's card is full.
    monkeypatch.setattr(Resources, "backbone", on(1, raising(FULL), Resources.backbone))
    made = plan(seeds=range(5), training=SHORT)
    with pytest.warns(UserWarning, match=naming("cuda:1/1 ", "no more", "CUDA out of memory")):
        events, place = run(store, made, cards(2))
    assert statuses(store) == {"FINISHED": 5, "KILLED": REFUSED}
    assert {event.worker for event in events if event.kind == "finished"} == {"cuda:0/0"}
    assert place.slots == 1


def test_a_card_that_is_full_while_trials_are_prepared_leaves_them_to_the_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Resources, "backbone", on(0, raising(FULL), Resources.backbone))
    with pytest.warns(UserWarning, match=naming("cuda:0/0 ", "no more", "do not fit")):
        run(store, plan(seeds=range(3), training=SHORT), cards(2))
    assert statuses(store) == {"FINISHED": 3}


def test_memory_that_runs_out_beside_other_trials_is_no_failure_until_the_trial_was_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(seeds=range(6), training=SHORT)
    large, *_ = made.trials
    real, beside = tensorbench.execution.perform.run_trial, get_context("fork").Value("i", 0)

    def run_trial(trial: Any, *rest: Any) -> Any:
        if trial == large:
            raise FULL
        with beside.get_lock():
            beside.value += 1
        return real(trial, *rest)

    monkeypatch.setattr(tensorbench.execution.perform, "run_trial", run_trial)
    events, place = run(store, made, cards(1, sharing=2))
    ends = [event for event in events if event.ending and event.trial == large]
    assert ends[0].worker != ends[1].worker
    assert [event.kind for event in ends] == ["lost", "lost", "failed"]
    assert ends[-1].ending is not None
    assert "out of memory" in ends[-1].ending.failure
    # While it was alone, no other trial began or ended.
    last = [event for event in events if event.kind in ("started", "lost", "failed", "finished")]
    begun = max(i for i, event in enumerate(last) if event.kind == "started" and event.trial == large)
    assert last[begun + 1] == ends[-1]
    running = Counter(event.trial.id for event in last[:begun] if event.kind == "started")
    running -= Counter(event.trial.id for event in last[:begun] if event.ending)
    assert not running
    assert statuses(store) == {"FINISHED": 5, "KILLED": 2, "FAILED": 1}
    assert (beside.value, place.slots) == (5, 2)


def test_trials_that_fit_on_a_card_only_alone_all_finish(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def perform(*rest: Any, alone: bool) -> Any:
        return real(*rest, alone=True) if alone else lost("beside other trials: out of memory")

    real = tensorbench.execution.perform.perform
    monkeypatch.setattr(tensorbench.execution.perform, "perform", perform)
    _, place = run(store, plan(seeds=range(4), training=SHORT), cards(1, sharing=2))
    assert statuses(store)["FINISHED"] == 4
    assert place.slots == 1


def test_after_an_error_that_breaks_the_device_the_next_trial_has_a_new_process(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(seeds=range(3), training=SHORT)
    bad, *_ = made.trials
    real, broken = tensorbench.execution.perform.run_trial, []

    def run_trial(trial: Any, *rest: Any) -> Any:
        if trial == bad or broken:
            # From then on everything fails in this process.
            broken.append(trial)
            raise ASSERT
        return real(trial, *rest)

    monkeypatch.setattr(tensorbench.execution.perform, "run_trial", run_trial)
    monkeypatch.setattr(tensorbench.execution.perform, "answers", lambda device: not broken)
    run(store, made, cards(1))
    assert statuses(store) == {"FINISHED": 2, "FAILED": 1}
    (record,) = [record for record in store.records() if record.status == "FAILED"]
    assert record.trial_id == bad.id
    assert "device-side assert" in record.tags["failure_message"]
    path = store.client.download_artifacts(record.run_id, "traceback.txt")
    assert "RuntimeError: CUDA error" in Path(path).read_text()


def test_in_one_process_a_broken_device_ends_the_run_and_the_next_start_goes_past_its_trial(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(seeds=range(3), training=SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(tensorbench.execution.perform, "run_trial", raising(ASSERT))
        patch.setattr(tensorbench.execution.perform, "answers", lambda device: False)
        with pytest.raises(UserError, match=naming(made.trials[0].id, "device-side assert", "start again")):
            executed(store, made)
    assert statuses(store) == {"FAILED": 1}
    executed(store, made, list(driver.pending(made, store.records())))
    assert statuses(store) == {"FAILED": 1, "FINISHED": 2}


@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_that_does_not_end_delays_only_its_slot(
    count: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(seeds=range(4), training=SHORT)
    stuck: list[psutil.Process] = []
    real = tensorbench.execution.perform.run_trial

    def hangs(trial: Any, *rest: Any) -> Any:
        if trial == made.trials[0]:
            signal.pause()
        return real(trial, *rest)

    monkeypatch.setattr(tensorbench.execution.perform, "run_trial", hangs)
    monkeypatch.setattr(local, "ENDING", 0.05)
    # As a process that waits for a GPU which fell off its bus: SIGKILL does not end it.
    monkeypatch.setattr(local, "kill_group", lambda pid: None)

    def notify(event: Event) -> None:
        if event.kind == "started" and event.trial == made.trials[0]:
            (held,) = [held for held in place._workers if held.trial == event.trial]
            stuck.append(psutil.Process(held.process.pid))
            monkeypatch.setattr(held.process, "kill", lambda: None)
            held.watch.limit = 0.0

    remove = Local._remove

    def removed(self: Local, worker: Any) -> None:
        remove(self, worker)
        if self._stuck and stuck and count == 1:
            with monkeypatch.context() as patch:
                patch.setattr(local, "NO_SLOT", 0)
                with pytest.raises(UserError, match="no slot is left"):
                    self._prepare(list(made.trials), notify, None)
                with pytest.raises(UserError, match="no slot is left"):
                    _ = self.free
            stuck.pop().kill()

    monkeypatch.setattr(Local, "_remove", removed)
    with Local(cards(count)) as place:
        place.prepare(list(made.trials))
        with pytest.warns(UserWarning, match="does not end"):
            run_on(place, store, made, notify=notify)
        assert statuses(store) == {"FINISHED": 3, "FAILED": 1}
        if count == 2:
            assert place.free == 1
            stuck[0].kill()
        while place.free < count:
            time.sleep(0.01)


def test_what_a_worker_says_has_its_name_and_what_it_prints_is_kept(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, begun = plan(seeds=range(2), training=SHORT), tmp_path / "begun"
    real = tensorbench.execution.perform.run_trial

    def run_trial(trial: Any, *rest: Any) -> Any:
        warnings.warn("beware", stacklevel=1)
        warnings.warn("such data", DataWarning, stacklevel=1)
        if not begun.exists():
            begun.touch()
            os.write(1, b"a library's last words")
            os.kill(os.getpid(), signal.SIGSEGV)
        return real(trial, *rest)

    monkeypatch.setattr(tensorbench.execution.perform, "run_trial", run_trial)
    with pytest.warns(UserWarning, match="beware") as warned:
        run(store, made, cards(1))
    said = [str(w.message) for w in warned]
    assert said.count("cuda:0/0: beware") > 1
    # The next worker has the same data, of which nothing is told again.
    assert said.count("such data") == 1
    record, *_ = [record for record in store.records() if record.status == "KILLED"]
    assert "SIGSEGV" in record.failure
    printed = Path(record.failure.rpartition(" is in ")[2]).read_text(errors="replace")
    assert "a library's last words" in printed
    # The stack at the end.
    assert "run_trial" in printed


def test_a_gpu_that_another_driver_uses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorbench.machine.cards, "cache_dir", lambda: tmp_path)
    with held(["0", "GPU-a/b"]) as first:
        assert first == []
        with held(["1", "GPU-a/b"]) as second:
            (sentence,) = second
            assert re.search(naming("GPU-a/b", str(os.getpid())), sentence)
    with held(["0"]) as again:
        assert again == []


def test_a_gpu_is_the_same_by_index_and_by_uuid_and_another_one_in_another_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: Callable[..., Path]
) -> None:
    monkeypatch.setattr(tensorbench.machine.cards, "cache_dir", lambda: tmp_path)
    programs(nvidia_smi='echo "0, GPU-a, 2000\n1, GPU-b, 2000"')
    with held(["0", "1"]):
        with held(["GPU-b"]) as by_uuid:
            assert len(by_uuid) == 1
        programs(nvidia_smi='echo "0, GPU-c, 2000"')
        with held(["0"]) as in_another_job:
            assert in_another_job == []


def test_one_process_says_that_it_leaves_gpus_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorbench.execution.inline, "cards", lambda: ["0", "1", "2"])
    with pytest.warns(UserWarning, match=naming("of 3 GPUs", "--executor local")):
        assert Inline("cuda").cards == ["0"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Inline("cuda:2").cards == ["2"]


def test_only_gpus_are_examined_and_a_broken_one_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(torch.device("cpu")) == ""
    monkeypatch.setattr(tensorbench.execution.health, "take_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100 * 2**20, 81_000 * 2**20))
    assert "100 of its 81,000 MiB" in refusal(torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80_000 * 2**20, 81_000 * 2**20))
    monkeypatch.setattr(tensorbench.execution.health, "_multiply", raising(ASSERT))
    assert "RuntimeError: CUDA error: device-side assert" in refusal(torch.device("cuda:0"))


# --- several trials on a GPU ---


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts programs with these scripts on the path, and returns the file that they may write to, as $LOG."""
    log = tmp_path / "log"

    def install(**scripts: str) -> Path:
        for name, script in scripts.items():
            program = tmp_path / name.replace("_", "-")
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
        return log

    monkeypatch.setenv("LOG", str(log))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv(mps.PIPES, raising=False)
    return install


def test_processes_on_a_gpu_share_it_by_a_service_of_their_own(programs: Callable[..., Path]) -> None:
    log = programs(nvidia_cuda_mps_control=f'echo "$* ${VISIBLE} $CUDA_MPS_PIPE_DIRECTORY $(cat)" >> "$LOG"')
    with mps.service(["3", "5", "3", "5"]) as environments:
        assert [environments[card][VISIBLE] for card in ("3", "5")] == ["0", "1"]
        (folder,) = {item[mps.PIPES] for item in environments.values()}
        for sharing, percentage in ((1, "100"), (4, "50")):
            with local._environment(Slot("cuda:1/1", "cuda:0", 1, "5", sharing), environments["5"]):
                assert (os.environ[VISIBLE], os.environ[mps.PIPES]) == ("1", folder)
                assert os.environ[mps.PERCENTAGE] == percentage
    assert log.read_text().splitlines() == [f"-d 3,5 {folder} ", f" 3,5 {folder} quit"]
    assert mps.PIPES not in os.environ
    with mps.service(["GPU-a"]) as environments:
        assert environments["GPU-a"][VISIBLE] == "GPU-a"


@pytest.mark.parametrize("script", [None, "echo no permission >&2; exit 1"])
def test_without_the_service_processes_take_turns_and_a_warning_says_why(
    programs: Callable[..., Path], script: str | None
) -> None:
    programs(**({"nvidia_cuda_mps_control": script} if script else {}))
    reason = "no permission" if script else "not installed"
    with pytest.warns(UserWarning, match=naming("take turns", reason)), mps.service(["0"]) as environments:
        assert environments == {}


def test_a_service_that_keeps_its_output_open_is_not_waited_for(programs: Callable[..., Path]) -> None:
    log = programs(nvidia_cuda_mps_control='if [ "$1" = -d ]; then sleep 100 & echo $! > "$LOG"; fi')
    try:
        with mps.service(["0"]) as environments:
            assert environments["0"]
    finally:
        os.kill(int(log.read_text()), signal.SIGKILL)


def test_a_service_of_the_user_s_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mps.PIPES, "/tmp/theirs")
    with mps.service(["0"]) as environments:
        assert environments == {}


def test_slots_are_as_many_as_cores_and_memory_allow(
    programs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs(nvidia_smi='echo "0, GPU-a, 2000\n1, GPU-b, 81000\n2, GPU-c, [N/A]"')
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    place = Local.open(Place("local", "cuda", slots_per_device="auto"))
    assert place.slots == 3 * (16 // 3 - 1)
    monkeypatch.setattr(local, "device_mib", lambda trials, saving: 700.0)
    monkeypatch.setattr(local, "worker_mib", lambda trials: 500.0)
    monkeypatch.setattr(local, "available_mib", lambda: 50_000.0)
    place.fit(list(plan().trials))
    # Two fit on the first GPU, and of the third nothing is known.
    assert Counter(slot.card for slot in place._free) == {"0": 2, "1": 4, "2": 4}
    assert {slot.card: slot.sharing for slot in place._free} == {"0": 2, "1": 4, "2": 4}
    assert place.slots == 10
    for free, counts in ((4000.0, [2, 3, 3]), (100.0, [1, 1, 1])):
        monkeypatch.setattr(local, "available_mib", lambda free=free: free)
        place = Local.open(Place("local", "cuda", slots_per_device="auto"))
        place.fit(list(plan().trials))
        assert sorted(Counter(slot.card for slot in place._free).values()) == counts


def test_a_gpu_s_memory_counts_weights_as_they_are_held() -> None:
    def needed(**held: str) -> float:
        trial = plan(backbones=[{"name": "minilm-l6", **held}], tasks=["movie-sentiment"]).trials[0]
        return device_mib([trial], Saving()) - PROCESS_MIB - activation_mib(trial, Saving())

    # Four bytes a weight: the six layers' projections of 12 · 384² weights.
    full = needed()
    assert full == pytest.approx(4 * 6 * 12 * 384**2 / 2**20)
    assert needed(dtype="bfloat16") == pytest.approx(full / 2)
    assert needed(quantise="nf4") == pytest.approx(full * 9 / 64)


def test_an_error_of_a_neighbour_on_the_gpu_is_no_failure_of_a_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (trial,) = plan(training=SHORT).trials
    monkeypatch.setattr(tensorbench.execution.perform, "run_trial", raising(ASSERT))
    monkeypatch.setattr(tensorbench.execution.perform, "answers", lambda device: False)
    for alone, status in ((False, "KILLED"), (True, "FAILED")):
        resources = Resources("cpu")
        ending = tensorbench.execution.perform.perform(trial, resources, lambda progress: None, alone=alone)
        assert (ending.status, resources.broken) == (status, True)
        assert "device-side assert" in ending.failure
