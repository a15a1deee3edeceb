"""Runs trials in processes of this machine, one for each slot of a device: a crash costs one trial only."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Self

import psutil
import torch

from bench.execution import choose_device
from bench.execution.executor import Executor
from bench.execution.perform import (
    Event,
    Report,
    ended,
    overdue,
    perform,
    prepare_or_say_why,
    preparing,
    started,
)
from bench.execution.place import Place
from bench.execution.watch import BEAT, Watch
from bench.plan.trial import Trial
from bench.process.guard import Guard, kill_group
from bench.process.memory import MIB
from bench.process.visible import visible
from bench.training.loop import Pruned
from bench.training.saving import PLAIN, Saving
from bench.training.trial import Resources
from bench.wire.record import Progress, lost
from methods import UserError

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

#: Where so many workers in a row died before they were ready, the next one would die too.
STILLBORN = 3

#: The least memory of a worker, in MiB: torch and the libraries alone take 350 to 550.
LEAST_MEMORY = 512
#: The most, in MiB: the system counts bytes in 63 bits.
MOST_MEMORY = 2**43 - 1

#: From linux/prctl.h.
PR_SET_PDEATHSIG = 1

#: Environment variables that set how many threads numerical libraries use.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Slot:
    """The place of one worker: a share of a device, and a number of threads."""

    #: The device and a number, as in `cuda:0/1`.
    name: str
    device: str
    threads: int
    #: MiB of memory that its worker may take for its data; None: as much as there is.
    memory: int | None = None
    #: How its worker runs trials in less memory.
    saving: Saving = PLAIN


@dataclass
class _Worker:
    slot: Slot
    process: SpawnProcess
    #: The driver's end of the pipe.
    link: Connection
    #: What it runs.
    trial: Trial | None = None
    #: Whether it has said that it is: then its environment works, and a death has to do with its trial.
    ready: bool = False
    #: Why it could not prepare the trials, empty where it could; None as long as it has not said.
    prepared: str | None = None
    watch: Watch = field(default_factory=lambda: Watch(None))


class Local(Executor):
    """One process a slot, spawned when it is first needed. Each loads a backbone once."""

    options = frozenset({"workers", "slots_per_device", "worker_memory"})

    def __init__(self, slots: list[Slot]) -> None:
        super().__init__(slots[0].device.partition(":")[0], slots[0].saving)
        self._free = list(reversed(slots))
        self._workers: list[_Worker] = []
        self.slots = len(slots)
        #: How many workers in a row died before they were ready.
        self._stillborn = 0
        #: Ends the workers where this process cannot any more.
        self._guard: Guard | None = None

    @classmethod
    def open(cls, place: Place) -> Self:
        """Makes the executor with a slot for each worker.

        Raises UserError for a missing device, for more workers than slots, and for a limit of memory that
        this machine cannot set.
        """
        memory = place.worker_memory
        if memory is not None and sys.platform != "linux":
            raise UserError("--worker-memory: only Linux limits the memory of a process")
        if memory is not None and not LEAST_MEMORY <= memory <= MOST_MEMORY:
            raise UserError(f"--worker-memory {memory}: accepted are {LEAST_MEMORY} to {MOST_MEMORY} MiB")
        slots = local_slots(choose_device(place.device), place.workers, place.slots_per_device)
        return cls([Slot(*slot, memory, place.saving) for slot in slots])

    def _prepare(self, trials: list[Trial], report: Report, limit: float | None) -> None:
        """One worker prepares while the others start: what it puts into the cache, all of them find there."""
        for _ in range(min(len(trials), self.slots) - len(self._workers)):
            self._start()
        for _ in range(STILLBORN):
            first = self._workers[0]
            first.prepared, first.watch = None, Watch(limit)
            self._send(first, ("prepare", trials))
            while self._heard(first, report) and first.prepared is None:
                wait([first.link, first.process.sentinel], timeout=1)
                first.watch.listen(at_work=True)
                if event := preparing(trials[0], first.slot.name, first.watch):
                    report(event)
            if first.prepared == "":
                return
            if first.prepared:
                raise UserError(first.prepared)
            self._remove(first)
            self._start()
        raise UserError(f"{STILLBORN} workers that prepared the trials died; the last {_died(first.process)}")

    @property
    def free(self) -> int:
        return len(self._free) + sum(worker.trial is None for worker in self._workers)

    def submit(self, trial: Trial, limit: float | None = None) -> None:
        idle = [worker for worker in self._workers if worker.trial is None]
        for worker in idle:
            if not worker.process.is_alive():
                self._remove(worker)
        worker = next((one for one in idle if one in self._workers), None) or self._start()
        self._give(worker, trial, limit)

    def _give(self, worker: _Worker, trial: Trial, limit: float | None) -> None:
        worker.trial, worker.watch = trial, Watch(limit)
        self._send(worker, ("run", trial))

    @staticmethod
    def _send(worker: _Worker, message: tuple[str, Any]) -> None:
        """To a worker that may have died: whoever listens to it next finds that out."""
        with suppress(OSError):
            worker.link.send(message)

    def step(self, report: Report) -> None:
        busy = [worker for worker in self._workers if worker.trial]
        wait([end for worker in busy for end in (worker.link, worker.process.sentinel)], timeout=1)
        for worker in busy:
            worker.watch.listen(at_work=worker.ready)
            if self._heard(worker, report):
                self._look_after(worker, report)
                continue
            trial = worker.trial
            if worker.ready:
                self._remove(worker)
                if trial:
                    reason = f"its worker ({worker.slot.name}) {_died(worker.process)}"
                    report(ended(trial, worker.slot.name, lost(reason)))
            else:
                self._replace_stillborn(worker)

    def _look_after(self, worker: _Worker, report: Report) -> None:
        """Ends a worker whose trial takes too long, and tells of one that tells nothing."""
        if worker.trial is None:
            return
        event = overdue(worker.trial, worker.slot.name, worker.watch)
        if event is None:
            return
        if event.ending is not None:
            worker.process.kill()
            self._remove(worker)
        report(event)

    def processes(self) -> list[psutil.Process]:
        """The worker processes."""
        return [psutil.Process(worker.process.pid) for worker in self._workers]

    def stop(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers[:]:
            self._remove(worker)
        if self._guard:
            self._guard.close()
            self._guard = None

    def _start(self) -> _Worker:
        slot = self._free.pop()
        self._guard = self._guard or Guard()
        ours, theirs = get_context("spawn").Pipe()
        process = get_context("spawn").Process(
            target=_serve, args=(theirs, slot), name=f"tensorbench {slot.name}", daemon=True
        )
        with _environment(slot):
            process.start()
        self._guard.watch(_pid(process))
        theirs.close()
        worker = _Worker(slot, process, ours)
        self._workers.append(worker)
        return worker

    def _remove(self, worker: _Worker) -> None:
        """Waits for the end of a worker, and ends what it has started."""
        worker.process.join()
        kill_group(_pid(worker.process))
        if self._guard:
            self._guard.forget(_pid(worker.process))
        worker.link.close()
        self._workers.remove(worker)
        self._free.append(worker.slot)

    def _replace_stillborn(self, worker: _Worker) -> None:
        """A worker that died before it was ready has not begun with its trial: another one gets it."""
        trial = worker.trial
        assert trial is not None
        self._remove(worker)
        self._stillborn += 1
        if self._stillborn >= STILLBORN:
            raise UserError(f"the last {STILLBORN} workers {_died(worker.process)} before they could start")
        self._give(self._start(), trial, worker.watch.limit)

    def _heard(self, worker: _Worker, report: Report) -> bool:
        """Takes in what the worker has said so far; False if nothing will follow, because it is dead."""
        while True:
            try:
                if not worker.link.poll():
                    break
                said = worker.link.recv()
            except (EOFError, OSError):
                # Also where it died in the midst of a message.
                return False
            self._take(worker, said, report)
        # What it said in its last moment may have come since.
        return worker.process.is_alive() or worker.link.poll()

    def _take(self, worker: _Worker, said: tuple[str, Any], report: Report) -> None:
        kind, what = said
        if kind == "ready":
            worker.ready, self._stillborn = True, 0
            worker.watch.answered()
        elif kind == "prepared":
            worker.prepared = what
        elif kind == "alive":
            worker.watch.answered()
        else:
            worker.watch.progressed()
            event: Event = what
            if event.ending is not None:
                worker.trial = None
            try:
                report(event)
            except Pruned:
                self._send(worker, ("prune", event.trial.id))


@contextmanager
def _environment(slot: Slot) -> Iterator[None]:
    """What a worker inherits from the driver when it is started within this.

    It inherits how many threads to use, which libraries read when they are imported. SIGINT and SIGTERM,
    which a terminal or a batch system sends to all processes, do not reach it: the driver decides when it
    ends.
    """
    before = {key: os.environ.get(key) for key in THREADS}
    os.environ.update(dict.fromkeys(THREADS, str(slot.threads)))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _pid(process: SpawnProcess) -> int:
    assert process.pid is not None
    return process.pid


def _died(process: SpawnProcess) -> str:
    code = process.exitcode
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + ", as when memory runs out" * (name == "SIGKILL")


def _serve(link: Connection, slot: Slot) -> None:
    """The whole life of a worker: it does what its driver asks, until one of the two ends."""
    _end_with_driver()
    warnings.showwarning = lambda message, *_: print(f"warning: {visible(str(message))}", file=sys.stderr)
    torch.set_num_threads(slot.threads)
    # What was imported is no garbage, which every trial collects.
    gc.freeze()
    resources, line = Resources(slot.device, slot.saving), _Line(link)
    threading.Thread(target=line.keep_beating, daemon=True).start()
    if slot.memory:
        _limit_memory(slot.memory)
    line.send("ready", None)
    # An error of the pipe means that the driver is gone.
    with suppress(EOFError, OSError):
        while True:
            asked, about = link.recv()
            if asked == "prepare":
                with line.at_work():
                    said = prepare_or_say_why(about, resources)
                line.send("prepared", said)
            elif asked == "run":
                with line.at_work():
                    _run(about, resources, line, slot)


def local_slots(device: str, workers: int | None, slots_per_device: int | None) -> list[tuple[str, str, int]]:
    """Name, device and threads of each slot; the cores of this process are divided among them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device == "cpu":
        if slots_per_device:
            raise UserError("--slots-per-device is for GPUs; on CPUs use --workers")
        devices = ["cpu"] * (workers or cores)
    else:
        gpus = [device] if ":" in device else [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        devices = gpus * (slots_per_device or 1)
        if workers and workers > len(devices):
            raise UserError(
                f"--workers {workers}: there are {len(devices)} slots on {len(gpus)} GPU(s); "
                "raise --slots-per-device"
            )
        devices = devices[: workers or len(devices)]
    threads = max(1, cores // len(devices))
    return [(f"{device}/{i}", device, threads) for i, device in enumerate(devices)]


def _limit_memory(mib: int) -> None:
    """Lets this process take no more memory than this: what it asks for beyond that fails.

    What counts is private and writable, so neither libraries nor mapped files, nor addresses that were set
    aside only, as RLIMIT_AS counts them: that is three times as much in a process with torch.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = mib * MIB
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))


class _Line:
    """A worker's end of the pipe, over which two threads speak: its trial, and its signs of life."""

    def __init__(self, link: Connection) -> None:
        self.link = link
        self._speaking, self._busy = threading.Lock(), threading.Event()

    def send(self, kind: str, what: Any) -> None:
        with self._speaking:
            self.link.send((kind, what))

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While it runs a trial it gives signs of life; nobody listens to an idle worker."""
        self._busy.set()
        yield
        self._busy.clear()

    def keep_beating(self) -> None:
        # An error of the pipe means that the driver is gone.
        with suppress(OSError):
            while self._busy.wait():
                self.send("alive", None)
                time.sleep(BEAT)


def _run(trial: Trial, resources: Resources, line: _Line, slot: Slot) -> None:
    link = line.link

    def tell(event: Event) -> None:
        line.send("event", event)

    def report(progress: Progress) -> None:
        tell(Event(trial, "progress", slot.name, progress=progress))
        while link.poll():
            # A message that came too late, for an earlier trial, is passed over.
            if link.recv() == ("prune", trial.id):
                raise Pruned

    tell(started(trial, slot.name, resources))
    tell(ended(trial, slot.name, perform(trial, resources, report)))


def _end_with_driver() -> None:
    """Lets this process end with its driver at the latest, and makes it the leader of all that it starts.

    Linux ends it when the thread that started it has ended. Elsewhere, and for what it starts itself, there
    is the driver's guard.
    """
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    driver = parent_process()
    if driver is None or not driver.is_alive():
        # It ended before the system knew what to do then.
        os._exit(1)
