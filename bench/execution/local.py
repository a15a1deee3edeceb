"""Runs trials in processes of this machine, one for each device slot: a crash costs its trial only."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import psutil
import torch

from bench.execution.executor import Executor
from bench.execution.perform import Event, Report, ended, needed, perform, prepare_all
from bench.plan.trial import Trial
from bench.training.loop import Pruned
from bench.training.measure import provenance
from bench.training.trial import Resources
from bench.wire.trial import Progress, lost
from methods import UserError

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

#: So many deaths in a row of workers that have not begun with anything are no accident.
STILLBORN = 3

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Slot:
    """Where one worker runs: a share of a device, and threads."""

    name: str
    device: str
    threads: int


@dataclass
class _Worker:
    slot: Slot
    process: SpawnProcess
    link: Connection
    trial: Trial | None = None
    #: Whether it has spoken, so that its environment works.
    alive: bool = False
    #: What came of the preparation: None while it lasts, else what is wrong, or nothing.
    prepared: str | None = None


class Local(Executor):
    """One spawned process a slot, started when it is needed first; each loads a backbone once."""

    def __init__(self, slots: list[Slot]) -> None:
        self.device = slots[0].device.partition(":")[0]
        self._free = list(reversed(slots))
        self._workers: list[_Worker] = []
        self.slots = len(slots)
        self._stillborn = 0
        #: What is prepared, as `needed` tells it.
        self._prepared: set[str] = set()

    def prepare(self, trials: list[Trial]) -> None:
        """In one worker, while the others start: what it puts into the cache, all find there."""
        trials = [trial for trial in trials if needed(trial) not in self._prepared]
        if not trials:
            return
        for _ in range(min(len(trials), self.slots) - len(self._workers)):
            self._start()
        for _ in range(STILLBORN):
            first = self._workers[0]
            first.prepared = None
            # One that died while it was idle is heard of below.
            with suppress(OSError):
                first.link.send(("prepare", trials))
            while self._heard(first, lambda event: None) and first.prepared is None:
                wait([first.link, first.process.sentinel], timeout=1)
            if first.prepared == "":
                self._prepared |= {needed(trial) for trial in trials}
                return
            if first.prepared:
                raise UserError(first.prepared)
            self._remove(first)
            self._start()
        raise UserError(f"{STILLBORN} workers that prepared the trials died; the last {_died(first.process)}")

    @property
    def free(self) -> int:
        return len(self._free) + sum(worker.trial is None for worker in self._workers)

    def submit(self, trial: Trial) -> None:
        idle = [worker for worker in self._workers if worker.trial is None]
        for worker in idle:
            if not worker.process.is_alive():
                self._remove(worker)
        worker = next((one for one in idle if one in self._workers), None) or self._start()
        worker.trial = trial
        # A worker that died while it was idle is found by the next step.
        with suppress(OSError):
            worker.link.send(("run", trial))

    def step(self, report: Report) -> None:
        busy = [worker for worker in self._workers if worker.trial]
        wait([end for worker in busy for end in (worker.link, worker.process.sentinel)], timeout=1)
        for worker in busy:
            if self._heard(worker, report):
                continue
            trial = worker.trial
            if worker.alive:
                self._remove(worker)
                if trial:
                    reason = f"its worker ({worker.slot.name}) {_died(worker.process)}"
                    report(ended(trial, worker.slot.name, lost(reason)))
            else:
                self._replace_stillborn(worker)

    def processes(self) -> list[psutil.Process]:
        """The workers, to look at."""
        return [psutil.Process(worker.process.pid) for worker in self._workers]

    def stop(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers[:]:
            self._remove(worker)

    def _start(self) -> _Worker:
        slot = self._free.pop()
        ours, theirs = get_context("spawn").Pipe()
        process = get_context("spawn").Process(
            target=_serve, args=(theirs, slot), name=f"tensorbench {slot.name}", daemon=True
        )
        with _environment(slot):
            process.start()
        theirs.close()
        worker = _Worker(slot, process, ours)
        self._workers.append(worker)
        return worker

    def _remove(self, worker: _Worker) -> None:
        worker.process.join()
        worker.link.close()
        self._workers.remove(worker)
        self._free.append(worker.slot)

    def _replace_stillborn(self, worker: _Worker) -> None:
        """A worker that died before it spoke has not tried its trial: another one gets it."""
        trial = worker.trial
        self._remove(worker)
        self._stillborn += 1
        if self._stillborn >= STILLBORN:
            raise UserError(f"the last {STILLBORN} workers {_died(worker.process)} before they could start")
        fresh = self._start()
        fresh.trial = trial
        with suppress(OSError):
            fresh.link.send(("run", trial))

    def _heard(self, worker: _Worker, report: Report) -> bool:
        """Takes what the worker said; False if it has said its last."""
        while True:
            try:
                if not worker.link.poll():
                    break
                said = worker.link.recv()
            except (EOFError, OSError):  # the latter also for a message without its end
                return False
            self._take(worker, said, report)
        # What it said before it died is in the pipe still.
        return worker.process.is_alive() or worker.link.poll()

    def _take(self, worker: _Worker, said: tuple[str, Any], report: Report) -> None:
        kind, what = said
        if kind == "ready":
            worker.alive, self._stillborn = True, 0
        elif kind == "prepared":
            worker.prepared = what
        else:
            event: Event = what
            if event.ending is not None:
                worker.trial = None
            try:
                report(event)
            except Pruned:
                # One that has died since is found by the next step.
                with suppress(OSError):
                    worker.link.send(("prune", event.trial.id))


@contextmanager
def _environment(slot: Slot) -> Iterator[None]:
    """What a worker inherits: its threads, before it imports anything, and deafness to the signals that a
    terminal or a batch system sends to all processes. The driver decides what becomes of workers.
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


def _died(process: SpawnProcess) -> str:
    code = process.exitcode
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + ", as when memory runs out" * (name == "SIGKILL")


def _serve(link: Connection, slot: Slot) -> None:
    """A worker's life: it takes trials until its driver ends it, or ends itself."""
    threading.Thread(target=_end_with_driver, daemon=True).start()
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    torch.set_num_threads(slot.threads)
    resources = Resources(slot.device)
    link.send(("ready", None))
    # Its driver is gone where nothing comes any more.
    with suppress(EOFError, OSError):
        while True:
            asked, about = link.recv()
            if asked == "prepare":
                link.send(("prepared", _prepare(about, resources)))
            elif asked == "run":
                _run(about, resources, link, slot)


def _prepare(trials: list[Trial], resources: Resources) -> str:
    try:
        prepare_all(trials, resources)
    except UserError as error:
        return str(error)
    return ""


def _run(trial: Trial, resources: Resources, link: Connection, slot: Slot) -> None:
    def tell(event: Event) -> None:
        link.send(("event", event))

    def report(progress: Progress) -> None:
        tell(Event(trial, "progress", slot.name, progress=progress))
        while link.poll():
            # One that came when its trial had ended already is not for this one.
            if link.recv() == ("prune", trial.id):
                raise Pruned

    tell(Event(trial, "started", slot.name, provenance=provenance(slot.device)))
    tell(ended(trial, slot.name, perform(trial, resources, report)))


def _end_with_driver() -> None:
    driver = parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)
