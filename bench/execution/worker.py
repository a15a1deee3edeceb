"""A worker: a process of this machine that prepares and runs trials for the driver that started it."""

from __future__ import annotations

import ctypes
import faulthandler
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
from dataclasses import dataclass
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from tensorbench.execution.health import refusal
from tensorbench.execution.perform import TooLargeError, prepare_all, report_trial
from tensorbench.execution.watch import BEAT
from tensorbench.machine.memory import MIB
from tensorbench.machine.visible import visible
from tensorbench.methods import UserError
from tensorbench.training.numerics import refused_precision
from tensorbench.training.saving import PLAIN, Saving
from tensorbench.training.trial import DataWarning, Resources

#: PR_SET_PDEATHSIG from linux/prctl.h.
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Slot:
    """The share of the machine that one worker uses: a device or a part of one, threads, and memory."""

    #: The device and the slot's number, as in `cuda:0/1`.
    name: str
    #: The device as the worker names it. A worker that sees only its own GPU calls it `cuda:0`.
    device: str
    threads: int
    #: The GPU, as the worker's `VISIBLE` names it. Empty: the worker sees all GPUs.
    card: str = ""
    #: The number of slots on the device.
    sharing: int = 1
    #: The worker's limit of private memory in MiB. None: no limit.
    memory: int | None = None
    #: The options with which the worker saves memory.
    saving: Saving = PLAIN

    @property
    def where(self) -> str:
        """The device as the driver names it."""
        return self.name.partition("/")[0]


def serve(link: Connection, slot: Slot, log: Path) -> None:
    """Carries out the requests that the driver sends through `link`. All output goes to the file `log`."""
    _end_with_driver()
    # All output goes to a file, and the stack too if a signal such as SIGSEGV ends the process.
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    faulthandler.enable(descriptor)
    torch.set_num_threads(slot.threads)
    # Exclude imported modules from the garbage collection that every trial does.
    gc.freeze()
    resources, line = Resources(slot.device, slot.saving), _Line(link)
    warnings.showwarning = lambda message, category, *_: line.warn(message, category)
    threading.Thread(target=line.keep_beating, daemon=True).start()
    if slot.memory:
        # RLIMIT_AS would count libraries, mapped files and reserved addresses too, which is three times as
        # much once torch is loaded.
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = slot.memory * MIB
        resource.setrlimit(resource.RLIMIT_DATA, (soft if hard < 0 else min(soft, hard), hard))
    line.send("ready", None)
    examined = False
    # An error of the pipe means that the driver is gone.
    with suppress(EOFError, OSError):
        while True:
            request, content = link.recv()
            if not examined:
                with line.at_work():
                    reason = refusal(resources.device)
                if reason:
                    line.send("refused", reason)
                    return
                examined = True
            if request == "prepare":
                try:
                    with line.at_work():
                        prepare_all(content, resources)
                    line.send("prepared", "")
                except TooLargeError as error:
                    line.send("refused", str(error))
                    return
                except UserError as error:
                    line.send("prepared", str(error))
            elif request == "run":
                with line.at_work():
                    trial, alone = content
                    if reason := refused_precision([trial], resources.device):
                        # Another GPU may compute what this one does not.
                        line.send("refused", reason)
                        return
                    report_trial(
                        trial,
                        resources,
                        partial(line.send, "event"),
                        slot.name,
                        slots=slot.sharing,
                        alone=alone,
                    )


class _Line:
    """A worker's end of the pipe, shared by two threads: one runs the trial, one sends signs of life."""

    def __init__(self, link: Connection) -> None:
        self.link = link
        self._speaking, self._busy = threading.Lock(), threading.Event()

    def send(self, kind: str, content: Any) -> None:
        with self._speaking:
            self.link.send((kind, content))

    def warn(self, message: Warning | str, category: type[Warning]) -> None:
        # Deprecations concern the authors of libraries. Python shows them to nobody else by default.
        if not issubclass(category, DeprecationWarning):
            self.send("of data" if issubclass(category, DataWarning) else "warning", visible(str(message)))

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """A context in which the worker gives signs of life. The driver does not listen to an idle worker."""
        self._busy.set()
        try:
            yield
        finally:
            self._busy.clear()

    def keep_beating(self) -> None:
        # An error of the pipe means that the driver is gone.
        with suppress(OSError):
            while self._busy.wait():
                self.send("alive", None)
                time.sleep(BEAT)


def _end_with_driver() -> None:
    """Makes sure that this worker ends when its driver ends. Also starts a new process group.

    On Linux the system kills the worker when the driver's thread that started it ends. On other systems the
    driver's guard process kills it. The guard also kills the processes that the worker started.
    """
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    driver = parent_process()
    if driver is None or not driver.is_alive():
        # The driver ended before the call above.
        os._exit(1)
