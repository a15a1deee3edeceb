"""A guard process that ends workers and their children when their driver is gone.

A guard runs this file with only the standard library. It receives the workers' ids over a pipe, which closes
when the driver ends in any way. So it does not depend on the workers, which may be suspended, or inside a
call that blocks all their threads.
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
    """The driver's side of a guard process."""

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
        """Makes the guard end a process and its process group when this process has ended."""
        self._tell(f"+{pid}\n")

    def forget(self, pid: int) -> None:
        """Stops watching a process that has ended, since its id may be reused."""
        self._tell(f"-{pid}\n")

    def close(self) -> None:
        """Ends the guard and every process that it still watches."""
        self.let_go()
        self._process.wait()

    def let_go(self) -> None:
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
