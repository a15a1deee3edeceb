"""What a second signal does, and one in the midst of a write."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CLOSING = """
import time
from bench import interrupts
interrupts.install()
try:
    print("at work", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("closing", flush=True)
    time.sleep(60)
"""

WRITING = """
import time
from bench import interrupts
interrupts.install()
try:
    with interrupts.deferred():
        print("at work", flush=True)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            time.sleep(0.05)
        print("written", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("closing", flush=True)
"""


@contextmanager
def started(program: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "at work\n"
        yield process
    finally:
        process.kill()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_it_at_once(how: signal.Signals) -> None:
    with started(CLOSING) as process:
        process.send_signal(how)
        assert process.stdout is not None
        assert process.stdout.readline() == "closing\n"
        # Less than half a second later it would be the same signal by another way.
        time.sleep(0.6)
        process.send_signal(how)
        assert process.wait(timeout=10) == 130


def test_a_write_ends_before_its_interrupt() -> None:
    with started(WRITING) as process:
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=10)[0] == "written\nclosing\n"
