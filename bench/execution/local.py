"""Runs trials in processes of this machine, one per slot of a device. A crash costs a single trial."""

from __future__ import annotations

import os
import re
import signal
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import psutil

from tensorbench.execution.estimate import device_mib, worker_mib
from tensorbench.execution.executor import Executor, Worker
from tensorbench.execution.multiprocessing_internals import forget
from tensorbench.execution.perform import Event, Report, ended
from tensorbench.execution.place import Place
from tensorbench.execution.watch import Watch
from tensorbench.execution.worker import Slot, serve
from tensorbench.machine.cache import cache_dir
from tensorbench.machine.cards import VISIBLE, cards, choose_device, free_mib
from tensorbench.machine.guard import Guard, kill_group
from tensorbench.machine.memory import available_mib
from tensorbench.machine.mps import PERCENTAGE, service
from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.record import lost

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

#: If this many workers in a row die before they are ready, no further worker is started.
STILLBORN = 3

#: If this many different trials in a row could not use a slot's device, the slot is closed.
REFUSED = 2

#: The most slots of a GPU that `--slots-per-device auto` makes.
MOST_SHARING = 8

#: Seconds that a killed worker may take to end. A process that waits for a broken GPU may take for ever.
ENDING = 5.0

#: Seconds to wait for killed workers if no other slot is left.
NO_SLOT = 60.0

#: The smallest accepted memory limit of a worker in MiB. Torch and the libraries alone take 350 to 550.
LEAST_MEMORY = 512
#: The largest accepted memory limit in MiB. The system counts bytes with 63 bits.
MOST_MEMORY = 2**43 - 1

#: The environment variables that tell numerical libraries how many threads to use.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(kw_only=True, eq=False)
class _Worker(Worker):
    slot: Slot
    process: SpawnProcess
    #: The driver's end of the pipe.
    link: Connection
    #: Whether the trial has the device for itself. Workers on a CPU have their memory for themselves.
    alone: bool = True
    #: Whether the device broke in the worker's process.
    broken: bool = False
    #: Why the worker's device cannot be used. Empty if it can, or has not been examined.
    refusal: str = ""
    #: Whether the worker has reported that it is ready. If it dies afterwards, its trial is to blame.
    ready: bool = False
    #: Why the worker could not prepare the trials. Empty if it could. None before the worker answers.
    prepared: str | None = None


class Local(Executor):
    """Runs trials in one process per slot. A process is started when it is first needed.

    A process keeps its backbone from trial to trial.
    """

    options = frozenset({"workers", "slots_per_device", "worker_memory", "trial_timeout"})

    def __init__(self, slots: list[Slot]) -> None:
        super().__init__(slots[0].device.partition(":")[0], slots[0].saving)
        self.cards = [slot.card for slot in slots if slot.card]
        self._free = list(reversed(slots))
        self._workers: list[_Worker]
        self.slots = len(slots)
        #: Submitted trials that wait for a slot.
        self._waiting: list[Trial] = []
        #: The slots that lost a trial because of their device, by the trial's id.
        self._lost_on: defaultdict[str, list[str]] = defaultdict(list)
        #: The consecutive trials that could not use a slot's device, by the slot's name.
        self._refused: defaultdict[str, set[str]] = defaultdict(set)
        #: The names of slots that are used no more.
        self._closed: set[str] = set()
        #: Killed workers that have not ended. Their slots are out of use.
        self._stuck: list[_Worker] = []
        #: The number of consecutive workers that died before they were ready.
        self._stillborn = 0
        #: The warnings on data that workers have given. All workers read the same data.
        self._warned: set[str] = set()
        #: Whether the slots are to be reduced to those that fit in memory.
        self._by_memory = False
        #: Environment variables of workers on each GPU, by its entry in `VISIBLE`.
        self._environments: dict[str, dict[str, str]] = {}
        #: The folder of the files with the workers' output.
        self._logs = cache_dir() / "workers" / str(os.getpid())
        #: The guard process, which ends the workers if this process dies.
        self._guard: Guard | None = None

    @classmethod
    def open(cls, place: Place) -> Self:
        memory = place.worker_memory
        if memory is not None and sys.platform != "linux":
            raise UserError("--worker-memory: only Linux limits the memory of a process")
        if memory is not None and not LEAST_MEMORY <= memory <= MOST_MEMORY:
            raise UserError(f"--worker-memory {memory}: accepted are {LEAST_MEMORY} to {MOST_MEMORY} MiB")
        slots = local_slots(choose_device(place.device), place.workers, place.slots_per_device)
        executor = cls([replace(slot, memory=memory, saving=place.saving) for slot in slots])
        executor._by_memory = place.slots_per_device == "auto"
        return executor

    def __enter__(self) -> Self:
        super().__enter__()
        if self.cards and any(slot.sharing > 1 for slot in self._free):
            self._environments = self._held.enter_context(service(self.cards))
        return self

    def _prepare(self, trials: list[Trial], report: Report, limit: float | None) -> None:
        # The first worker fills the cache for all workers while the others start.
        for _ in range(min(len(trials) - len(self._workers), len(self._free))):
            self._start()
        died = 0
        while died < STILLBORN:
            self._reclaim()
            first = self._workers[0] if self._workers else self._start()
            first.prepared, first.watch = None, Watch(limit)
            self._send(first, ("prepare", trials))
            while self._heard(first, report) and first.prepared is None:
                wait([first.link, first.process.sentinel], timeout=1)
                first.watch.listen(at_work=True)
                self._watch_preparation(trials[0], first, report)
            if first.prepared == "":
                return
            if first.prepared:
                raise UserError(first.prepared)
            if first.refusal:
                if {slot.where for slot in self._open()} == {first.slot.where}:
                    raise UserError(f"{first.name}: {first.refusal}")
                self._close(first)
                continue
            died += 1
            self._remove(first)
        raise UserError(f"{STILLBORN} workers that prepared the trials died; the last {_died(first.process)}")

    def fit(self, trials: list[Trial]) -> None:
        """Removes slots that `--slots-per-device auto` made and that do not fit in memory.

        A GPU's slots have to fit in its free memory, and all slots in that of the machine. Each GPU keeps at
        least one slot.
        """
        if not self._by_memory:
            return
        self._by_memory = False
        needed = device_mib(trials, self._saving)
        fitting = {card: max(1, int(free / needed)) for card, free in free_mib(self.cards).items()}
        kept: list[Slot] = []
        for slot in reversed(self._free):
            on_card = sum(other.card == slot.card for other in kept)
            if on_card < fitting.get(slot.card, slot.sharing):
                kept.append(slot)
        # The first slots of all GPUs go before the second ones.
        kept = kept[: max(len(set(self.cards)), int(available_mib() / worker_mib(trials)))]
        counts = Counter(slot.card for slot in kept)
        self._free = [replace(slot, sharing=counts[slot.card]) for slot in reversed(kept)]
        self.slots = len(kept)

    @property
    def free(self) -> int:
        self._reclaim()
        # A trial that waits until it can have a device alone goes before all others.
        return 0 if self._waiting else len(self._usable())

    def submit(self, trial: Trial) -> None:
        self._waiting.append(trial)
        self._place()

    def _open(self) -> list[Slot]:
        return [*(worker.slot for worker in self._workers), *self._free]

    def _shares(self, slot: Slot) -> bool:
        """Whether another slot, or a killed worker that has not ended, uses the same GPU."""
        others = [*self._open(), *(worker.slot for worker in self._stuck)]
        return slot.where != "cpu" and any(other.where == slot.where and other != slot for other in others)

    def _usable(self) -> list[Slot]:
        """Returns the slots on which a trial may start now. Slots with a running worker come first."""
        taken = {w.slot.where for w in self._workers if w.trial and w.alone and w.slot.where != "cpu"}
        idle = [worker.slot for worker in self._workers if worker.trial is None]
        return [slot for slot in [*idle, *reversed(self._free)] if slot.where not in taken]

    def _place(self) -> None:
        """Gives the waiting trials to workers, as far as there are slots for them.

        A trial that was lost because of a slot's device waits for another slot, if there is one. After a
        second loss, it runs alone on its device.
        """
        for trial in self._waiting[:]:
            for worker in [worker for worker in self._workers if worker.trial is None]:
                if not worker.process.is_alive():
                    self._remove(worker)
            lost_on = self._lost_on[trial.id]
            others = {slot.name for slot in self._open()} - set(lost_on)
            slots = [slot for slot in self._usable() if not others or slot.name in others]
            alone = len(lost_on) > 1
            if alone:
                busy = {worker.slot.where for worker in self._workers if worker.trial}
                slots = [slot for slot in slots if slot.where not in busy]
            if not slots:
                return
            slot = slots[0]
            self._waiting.remove(trial)
            at_home = [worker for worker in self._workers if worker.slot == slot]
            alone = alone or not self._shares(slot)
            worker = at_home[0] if at_home else self._start(slot)
            worker.trial, worker.alone, worker.watch = trial, alone, Watch(None)
            self._send(worker, ("run", (trial, alone)))

    @staticmethod
    def _send(worker: _Worker, message: tuple[str, Any]) -> None:
        # If the worker is dead, listening to it will show that.
        with suppress(OSError):
            worker.link.send(message)

    def _reclaim(self) -> None:
        """Makes the slots of killed workers available that have ended meanwhile.

        Raises UserError if no slot is left, and none of these workers ends within `NO_SLOT` seconds.
        """
        if self._stuck and not self._open():
            wait([worker.process.sentinel for worker in self._stuck], timeout=NO_SLOT)
        for worker in self._stuck[:]:
            if not worker.process.is_alive():
                self._stuck.remove(worker)
                self._release(worker)
        if self._stuck and not self._open():
            names = ", ".join(worker.name for worker in self._stuck)
            raise UserError(f"no slot is left: the workers of {names} were killed and have not ended")

    def step(self, report: Report) -> None:
        self._reclaim()
        self._place()
        busy = [worker for worker in self._workers if worker.trial]
        wait([end for worker in busy for end in (worker.link, worker.process.sentinel)], timeout=1)
        for worker in busy:
            worker.watch.listen(at_work=worker.ready)
            alive = self._heard(worker, report)
            trial = worker.trial
            if worker.refusal:
                if trial:
                    self._waiting.insert(0, trial)
                self._close(worker)
            elif worker.broken:
                self._end(worker)
            elif alive:
                self._look_after(worker, report)
            elif worker.ready:
                self._remove(worker)
                if trial:
                    reason = f"its worker ({worker.name}) {_died(worker.process)}"
                    if (log := self._log(worker.slot)).exists() and log.stat().st_size:
                        reason += f"; its output is in {log}"
                    report(ended(trial, worker.name, lost(reason)))
            else:
                self._replace_stillborn(worker)

    def _end(self, worker: _Worker) -> None:
        worker.process.kill()
        self._remove(worker)

    def processes(self) -> list[psutil.Process]:
        return [psutil.Process(worker.process.pid) for worker in self._workers]

    def stop(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers[:]:
            self._remove(worker)
        if self._guard:
            self._guard.close()
            self._guard = None
        for log in self._logs.glob("*.log"):
            if not log.stat().st_size:
                log.unlink()
        with suppress(OSError):  # a file with output stays, and its folder
            self._logs.rmdir()

    def _log(self, slot: Slot) -> Path:
        """Returns the file with all output of a slot's workers."""
        return self._logs / f"{re.sub('[:/]', '-', slot.name)}.log"

    def _start(self, slot: Slot | None = None) -> _Worker:
        slot = slot or self._free[-1]
        self._free.remove(slot)
        self._guard = self._guard or Guard()
        ours, theirs = get_context("spawn").Pipe()
        process = get_context("spawn").Process(
            target=serve, args=(theirs, slot, self._log(slot)), name=f"tensorbench {slot.name}", daemon=True
        )
        self._logs.mkdir(parents=True, exist_ok=True)
        with _environment(slot, self._environments.get(slot.card, {})):
            process.start()
        self._guard.watch(_pid(process))
        theirs.close()
        worker = _Worker(slot.name, slot=slot, process=process, link=ours)
        self._workers.append(worker)
        return worker

    def _remove(self, worker: _Worker) -> None:
        """Waits until a killed or dead worker has ended, and then ends the processes that it started.

        If it does not end within `ENDING` seconds, its slot is out of use until it has.
        """
        self._workers.remove(worker)
        worker.process.join(ENDING)
        if worker.process.is_alive():
            warnings.warn(
                f"the worker of {worker.name} was killed and does not end; its slot is out of use",
                stacklevel=2,
            )
            self._stuck.append(worker)
            forget(worker.process)
            return
        self._release(worker)

    def _release(self, worker: _Worker) -> None:
        """Makes the slot of a worker that has ended available."""
        kill_group(_pid(worker.process))
        if self._guard:
            self._guard.forget(_pid(worker.process))
        worker.link.close()
        if worker.name not in self._closed:
            self._free.append(worker.slot)

    def _close(self, worker: _Worker) -> None:
        """Ends a worker whose device cannot be used, and closes its slot.

        Raises UserError if no slot is left.
        """
        self._closed.add(worker.name)
        self._end(worker)
        self.slots -= 1
        if self.slots == 0:
            raise UserError(f"no slot is left; {worker.name}: {worker.refusal}")
        warnings.warn(f"{worker.name} is used no more: {worker.refusal}", stacklevel=2)

    def _replace_stillborn(self, worker: _Worker) -> None:
        """Starts a new worker in place of one that died before it was ready, and gives it the same trial.

        Raises UserError if `STILLBORN` workers in a row have died before they were ready.
        """
        trial = worker.trial
        assert trial is not None
        self._remove(worker)
        self._stillborn += 1
        if self._stillborn >= STILLBORN:
            raise UserError(f"the last {STILLBORN} workers {_died(worker.process)} before they could start")
        self._waiting.insert(0, trial)
        self._place()

    def _heard(self, worker: _Worker, report: Report) -> bool:
        """Handles the worker's messages. Returns False if the worker is dead and all messages are read."""
        while True:
            try:
                if not worker.link.poll():
                    break
                message = worker.link.recv()
            except (EOFError, OSError):
                # The worker may also have died in the middle of a message.
                return False
            self._handle(worker, message, report)
        # A last message may have arrived in the meantime.
        return worker.process.is_alive() or worker.link.poll()

    def _handle(self, worker: _Worker, message: tuple[str, Any], report: Report) -> None:
        kind, content = message
        if kind == "ready":
            worker.ready, self._stillborn = True, 0
            worker.watch.answered()
        elif kind == "prepared":
            worker.prepared = content
        elif kind == "refused":
            worker.refusal = content
        elif kind == "warning":
            warnings.warn(f"{worker.name}: {content}", stacklevel=2)
        elif kind == "of data":
            if content not in self._warned:
                self._warned.add(content)
                warnings.warn(content, stacklevel=2)
        elif kind == "alive":
            worker.watch.answered()
        else:
            worker.watch.progressed()
            event: Event = content
            if event.ending is not None:
                worker.trial = None
                self._judge(worker, event)
            report(event)

    def _judge(self, worker: _Worker, event: Event) -> None:
        """Notes after a trial's end whether the worker's device broke, and whether its slot must be closed.

        A slot must be closed if it lost `REFUSED` trials in a row because of its device. The last slot of a
        GPU must be closed only if its trial ran alone on the GPU.
        """
        name = worker.name
        if event.kind == "lost":
            assert event.ending is not None
            self._lost_on[event.trial.id].append(name)
            self._refused[name].add(event.trial.id)
            if len(self._refused[name]) >= REFUSED and (worker.alone or self._shares(worker.slot)):
                worker.refusal = f"it lost {REFUSED} trials in a row, the last one as {event.ending.failure}"
        else:
            self._refused[name].clear()
        worker.broken = event.broken


@contextmanager
def _environment(slot: Slot, more: dict[str, str]) -> Iterator[None]:
    """A context for starting a worker, which inherits environment variables and blocked signals.

    The variables set the number of threads, which libraries read when they are imported, and the only GPU
    that the worker sees. They also keep Python from looking for modules in the working folder first. SIGINT
    and SIGTERM are blocked, because a terminal or a batch system sends them to all processes. The driver ends
    the workers itself. `more` has the variables of an MPS service, if there is one.
    """
    variables = {**dict.fromkeys(THREADS, str(slot.threads)), "PYTHONSAFEPATH": "1"}
    if slot.card:
        variables[VISIBLE] = slot.card
    if more:
        # Twice a fair share each, so that one process can use what others leave.
        variables |= more | {PERCENTAGE: str(min(100, -(-200 // slot.sharing)))}
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
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


def local_slots(
    device: str, workers: int | None, slots_per_device: int | Literal["auto"] | None
) -> list[Slot]:
    """Returns the slots on a device.

    On a CPU there are `workers` slots, by default one per core. On GPUs there are `slots_per_device` slots
    per GPU, by default one. "auto" divides the cores among the GPUs, leaves one core of each share free, and
    makes a slot per core, at most `MOST_SHARING` per GPU. Of all these slots, the first `workers` are used,
    by default all. The slots share the cores of this process equally.

    Raises UserError if there are more workers than slots on the GPUs, and for `slots_per_device` on a CPU.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device == "cpu":
        if slots_per_device:
            raise UserError("--slots-per-device is for GPUs; on CPUs use --workers")
        devices = ["cpu"] * (workers or cores)
    else:
        seen = cards()
        gpus = [device] if ":" in device else [f"cuda:{i}" for i in range(len(seen))]
        if slots_per_device == "auto":
            slots_per_device = min(MOST_SHARING, max(1, cores // len(gpus) - 1))
        devices = gpus * (slots_per_device or 1)
        if workers and workers > len(devices):
            raise UserError(
                f"--workers {workers}: there are {len(devices)} slots on {len(gpus)} GPU(s); "
                "raise --slots-per-device"
            )
        devices = devices[: workers or len(devices)]
    threads, sharing = max(1, cores // len(devices)), Counter(devices)
    if device == "cpu":
        return [Slot(f"cpu/{i}", "cpu", threads, sharing=len(devices)) for i in range(len(devices))]
    return [
        Slot(f"{gpu}/{i}", "cuda:0", threads, seen[int(gpu.partition(":")[2])], sharing[gpu])
        for i, gpu in enumerate(devices)
    ]
