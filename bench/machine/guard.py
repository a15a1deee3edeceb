"""A guard process that kills workers and their children when their driver has ended.

The guard runs this file as a program, with only the standard library. It receives the process ids of the
workers over a pipe. The pipe closes when the driver ends in any way, and then the guard kills the workers.
The guard needs no help from the workers, which may be suspended or in a call that blocks all their threads.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from weakref import WeakSet

#: Signals by which a terminal or a batch system ends the driver. The guard ignores them.
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_guards: WeakSet[Guard] = WeakSet()


class Guard:
    """Starts a guard process, and tells it which processes to kill when this process has ended."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            # Signals to the driver's process group must not reach the guard.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin
        _guards.add(self)

    def watch(self, pid: int) -> None:
        """Makes the guard kill the process `pid` and its process group when this process has ended."""
        self._tell(f"+{pid}\n")

    def forget(self, pid: int) -> None:
        """Makes the guard forget a process that has ended, since its id may be reused."""
        self._tell(f"-{pid}\n")

    def close(self) -> None:
        """Ends the guard, which first kills every process that it still watches."""
        self.let_go()
        self._process.wait()

    def let_go(self) -> None:
        """Closes this process's end of the pipe to the guard."""
        self._pipe.close()

    def _tell(self, line: str) -> None:
        # If somebody ended the guard, work continues without it.
        with suppress(OSError):
            self._pipe.write(line.encode())


def kill_group(pid: int) -> None:
    """Kills a process group, if it exists."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _let_go() -> None:
    # Forked processes must not hold the pipe open after this process ends.
    for guard in list(_guards):
        guard.let_go()


os.register_at_fork(after_in_child=_let_go)


def _main() -> None:
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    pids: set[int] = set()
    for line in sys.stdin:
        (pids.add if line.startswith("+") else pids.discard)(int(line[1:]))
    for pid in pids:
        # A worker that has just started is still in its driver's process group.
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
        kill_group(pid)


if __name__ == "__main__":
    _main()
