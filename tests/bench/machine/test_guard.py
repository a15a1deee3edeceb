"""Tests that the guard kills workers when their driver ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from tensorbench.machine.guard import Guard

from ..services import await_end

#: A program that leads a process group, starts a child, prints both ids and waits.
WORKER = """
import os, signal, subprocess
os.setsid()
print(os.getpid(), subprocess.Popen(["sleep", "1000000"]).pid, flush=True)
signal.pause()
"""

#: A program that reads a process id, guards that process, forks and waits.
DRIVER = """
import os, signal
from tensorbench.machine.guard import Guard
guard = Guard()
guard.watch(int(input()))
if fork := os.fork():
    print(fork, flush=True)
signal.pause()
"""

pytestmark = pytest.mark.processes


@pytest.fixture
def worker() -> Iterator[list[psutil.Process]]:
    """Yields a process and its child."""
    with subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        both = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        yield both
        for left in both:
            if left.is_running():
                left.kill()


def test_guarded_workers_end_with_a_killed_driver_although_its_fork_lives(
    worker: list[psutil.Process],
) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", DRIVER], stdin=pipe, stdout=pipe, text=True) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        try:
            print(worker[0].pid, file=driver.stdin, flush=True)
            fork = psutil.Process(int(driver.stdout.readline()))
            # A suspended worker cannot notice by itself that the driver is gone.
            worker[0].suspend()
        finally:
            driver.kill()
        driver.wait()
        await_end(worker)
        assert fork.is_running()
        fork.kill()


def test_a_forgotten_worker_keeps_running(worker: list[psutil.Process]) -> None:
    guard = Guard()
    guard.watch(worker[0].pid)
    guard.forget(worker[0].pid)
    guard.close()
    assert worker[0].status() != psutil.STATUS_ZOMBIE
