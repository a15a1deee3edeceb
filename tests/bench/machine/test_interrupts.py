"""Tests a second signal, signals during a write, and signals in code where Python swallows exceptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import tensorbench

from ..services import await_end

pytestmark = pytest.mark.processes

#: The beginning of programs that a signal interrupts, and that no limit of time ends.
INSTALLED = """
import gc, signal, sys, time, weakref
from tensorbench.machine import interrupts
interrupts.LIMITS = dict.fromkeys(interrupts.SIGNALS, 1000)
interrupts.install()
"""

CLOSING = """
try:
    print("at work", flush=True)
    time.sleep(1000)
except KeyboardInterrupt:
    print("closing", flush=True)
    time.sleep(1000)
"""

WRITING = """
interrupts.PATIENCE = 1000
try:
    with interrupts.deferred():
        print("at work", flush=True)
        sys.stdin.readline()
        print("written", flush=True)
    time.sleep(1000)
except KeyboardInterrupt:
    print("closing", flush=True)
"""

SWALLOWED = """
def tell(what):
    print("ignored", what.exc_type.__name__, flush=True)

def interrupt(*_):
    signal.raise_signal(signal.SIGINT)

def fail(*_):
    raise ValueError

def interrupt_and_fail(*_):
    try:
        interrupt()
    finally:
        fail()

class Held:
    def __init__(self, end=lambda: None):
        self.end = end
    def __del__(self):
        self.end()

def in_weakref(what):
    held = Held()
    ref = weakref.ref(held, what)
    del held

def in_del(what):
    Held(what)

def in_collection(what):
    gc.callbacks.append(lambda phase, info: phase == "stop" and what())
    gc.collect()
    gc.callbacks.clear()

sys.unraisablehook = tell
interrupts.RETRY = 0.3
"""

LOST = """
try:
    # However slow this is, the interrupt comes again only when it is known to be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGALRM,))
    {place}({what})
    print("lost", flush=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGALRM,))
    time.sleep(1000)
except KeyboardInterrupt:
    print("closing", flush=True)
"""

LOST_BEFORE_A_WRITE = """
try:
    in_del(interrupt)
    with interrupts.deferred():
        print("written", flush=True)
except KeyboardInterrupt:
    print("closing", flush=True)
"""

LOST_IN_A_WRITE = """
interrupts.PATIENCE = 0.2
def wait():
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGALRM,))
        time.sleep(1000)
    finally:
        # However slow this is, the interrupt comes again only when it is known to be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGALRM,))
try:
    with interrupts.deferred():
        # Nor does it come before somebody waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGALRM,))
        interrupt()
        in_del(wait)
        print("lost", flush=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGALRM,))
        time.sleep(1000)
except KeyboardInterrupt:
    with interrupts.deferred():
        print("closing", flush=True)
"""

FAILURES_OF_A_CLEANUP = """
try:
    interrupt()
finally:
    try:
        in_weakref(fail)
        in_del(fail)
        time.sleep(0.6)
        print("closed", flush=True)
    finally:
        sys.exit(130)
"""

LOST_AT_EXIT = """
import atexit
atexit.register(time.sleep, 0.6)
atexit.register(interrupt)
"""

LOST_AT_THE_END = """
import atexit
atexit.register(time.sleep, 0.6)
in_del(interrupt)
"""


@contextmanager
def started(program: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", INSTALLED + program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "at work\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_program_at_once(how: signal.Signals) -> None:
    with started(CLOSING) as process:
        process.send_signal(how)
        assert process.stdout is not None
        assert process.stdout.readline() == "closing\n"
        # Within half a second it counts as the same signal delivered twice.
        time.sleep(0.6)
        process.send_signal(how)
        assert process.wait() == 130


#: Programs whose main thread does not end: closing or an import takes for ever, or the thread is in C code,
#: where Python calls no handler.
ENDLESS = {
    "closing": """
try:
    begin()
except KeyboardInterrupt:
    time.sleep(1000)
""",
    "importing": """
sys.path.insert(0, sys.argv[1])
import endless
""",
    "in C code": """
import ctypes
pthread, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
pthread.pthread_mutex_lock(mutex)
try:
    threading.Thread(target=begin, args=[False]).start()
    pthread.pthread_mutex_lock(mutex)
except KeyboardInterrupt:
    pthread.pthread_mutex_lock(mutex)
""",
}

BEGIN = """
import psutil, signal, subprocess, sys, threading, time
from tensorbench.machine import interrupts
interrupts.LIMITS = dict.fromkeys(interrupts.SIGNALS, 0.2)
interrupts.install()

def begin(wait=True):
    # A child of its own session, which no terminal signals.
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
    print("at work", child.pid, flush=True)
    if wait:
        time.sleep(1000)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("what", ENDLESS)
def test_a_signal_ends_the_program_and_its_children_in_time(
    what: str, how: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "endless.py").write_text("import __main__\n__main__.begin()\n")
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + ENDLESS[what], tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        child = psutil.Process(int(process.stdout.readline().split()[-1]))
        process.send_signal(how)
        assert process.wait() == 130
        await_end([child])
    finally:
        process.kill()


def test_a_write_ends_before_its_interrupt() -> None:
    with started(WRITING) as process:
        process.send_signal(signal.SIGINT)
        assert process.communicate("go on\n")[0] == "written\nclosing\n"


def printed(program: str) -> tuple[str, int]:
    done = subprocess.run([sys.executable, "-c", INSTALLED + program], stdout=subprocess.PIPE, text=True)
    return done.stdout, done.returncode


@pytest.mark.parametrize("what", ["interrupt", "interrupt_and_fail"])
@pytest.mark.parametrize("place", ["in_weakref", "in_del", "in_collection"])
def test_an_interrupt_that_python_swallows_is_raised_again(place: str, what: str) -> None:
    assert printed(SWALLOWED + LOST.format(place=place, what=what)) == ("lost\nclosing\n", 0)


def test_a_swallowed_interrupt_comes_before_the_next_write() -> None:
    assert printed(SWALLOWED + LOST_BEFORE_A_WRITE) == ("closing\n", 0)


def test_an_interrupt_that_waited_for_a_write_is_raised_again() -> None:
    assert printed(SWALLOWED + LOST_IN_A_WRITE) == ("lost\nclosing\n", 0)


def test_failures_within_a_cleanup_do_not_interrupt_it() -> None:
    assert printed(SWALLOWED + FAILURES_OF_A_CLEANUP) == (
        "ignored ValueError\nignored ValueError\nclosed\n",
        130,
    )


@pytest.mark.parametrize(
    ("program", "output"),
    [(LOST_AT_EXIT, "ignored KeyboardInterrupt\n"), (LOST_AT_THE_END, "")],
    ids=["in it", "before it"],
)
def test_a_swallowed_interrupt_leaves_the_exit_alone(program: str, output: str) -> None:
    assert printed(SWALLOWED + program) == (output, 0)


# --- while the program starts ---

#: A program that sends itself a signal at the start of a module's import.
SITE = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPTED_IMPORT"]:
            sys.meta_path.remove(self)
            signal.raise_signal(signal.Signals[os.environ["INTERRUPTED_BY"]])

sys.meta_path.insert(0, Interrupting())
"""

SUITE = """
name: interrupted
backbones: [tiny-random-vit]
tasks: [{task: digits, train_size: 100, validation_size: 50, test_size: 50}]
methods: [{method: lora, rank: 1}]
seeds: [0]
floor: none
"""


@pytest.mark.parametrize(
    ("module", "how"),
    [
        *(
            (module, "SIGINT")
            for module in (
                "tensorbench.cli.program",
                "typer",
                "rich.console",
                "tensorbench.cli.suite_commands",
            )
        ),
        *((module, "SIGINT") for module in ("tensorbench.plan.suite", "pydantic", "numpy", "torch")),
        *((module, "SIGTERM") for module in ("typer", "numpy")),
    ],
)
def test_an_interrupt_of_any_import_ends_the_program_in_order(module: str, how: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE)
    places = [str(tmp_path), str(Path(tensorbench.__file__).parents[1])]
    named = {"PYTHONPATH": os.pathsep.join(places), "INTERRUPTED_IMPORT": module, "INTERRUPTED_BY": how}
    done = subprocess.run(
        [sys.executable, "-m", "tensorbench", "plan", str(suite)],
        env={**os.environ, **named},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert "stopped" in done.stderr


IMPORTING = """
try:
    import careless
    print("imported", flush=True)
    time.sleep(1000)
except KeyboardInterrupt:
    print("closing", flush=True)
"""


def test_no_module_swallows_an_interrupt(tmp_path: Path) -> None:
    (tmp_path / "careless.py").write_text(
        "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n    pass\n"
    )
    assert printed(f"sys.path.append({str(tmp_path)!r})\n{IMPORTING}") in (
        ("imported\nclosing\n", 0),
        # The timer may be faster than the print.
        ("closing\n", 0),
    )
