"""A guard that ends worker processes and their children when their driver is gone.

A guard is a process of its own, run from this file by the standard library alone. It learns the workers' ids
over a pipe, which ends with its driver, however that ends. So it needs no help of the workers, which may be
stopped, or in the midst of a call that lets no other thread of theirs run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from weakref import WeakSet

#: Signals by which a terminal or a batch system ends the driver; the guard ignores them.
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
            # A signal to the driver's process group is not for it.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin
        _guards.add(self)

    def watch(self, pid: int) -> None:
        """Makes a process and its process group end with this one."""
        self._tell(f"+{pid}\n")

    def forget(self, pid: int) -> None:
        """Stops watching a process that has ended, whose id may be reused."""
        self._tell(f"-{pid}\n")

    def close(self) -> None:
        """Ends the guard and every process that it still watches."""
        self.let_go()
        self._process.wait()

    def let_go(self) -> None:
        self._pipe.close()

    def _tell(self, line: str) -> None:
        # Somebody may have ended the guard, and that is no reason to stop the work.
        with suppress(OSError):
            self._pipe.write(line.encode())


def kill_group(pid: int) -> None:
    """Kills a process group, if it exists."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _let_go() -> None:
    # The pipe would not end with this process as long as a fork of it holds it open.
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
        # A worker that has just been started is in its driver's group still.
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
        kill_group(pid)


if __name__ == "__main__":
    _main()
