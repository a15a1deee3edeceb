"""Ctrl-C and SIGTERM: once to close what is open and stop, twice to end at once."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Seconds that an interrupt waits for the end of a write, where a server may be silent.
PATIENCE = 3
#: Seconds after which an interrupt is raised again that Python swallowed.
AGAIN = 0.05

_writing = 0
#: An interrupt is still to be raised: when a write ends, before the next one, or by the timer.
_asked = False


def install() -> None:
    """From here on the signals raise KeyboardInterrupt, in the midst of a write when that has ended."""
    for number in SIGNALS:
        signal.signal(number, _interrupt)


@contextmanager
def deferred() -> Iterator[None]:
    """Lets a write of the main thread come to its end: an interrupt within a transaction may be swallowed
    by a library, or leave the transaction open.
    """
    global _writing
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if not _writing:
        _raise_asked()
    _writing += 1
    try:
        yield
    finally:
        _writing -= 1
        if not _writing:
            _raise_asked()


def _interrupt(number: int, frame: object) -> None:
    interrupted = time.monotonic()
    unraisable = sys.unraisablehook

    def end(number: int, frame: object) -> None:
        # A terminal and a batch system may both pass on one and the same.
        if time.monotonic() - interrupted > 0.5:
            os._exit(130)

    def ignored(what: sys.UnraisableHookArgs) -> None:
        # At exit nobody is left to take it.
        if _swallowed(what.exc_value) and threading.main_thread().is_alive():
            _ask(AGAIN)
        else:
            unraisable(what)

    for other in SIGNALS:
        signal.signal(other, end)
    signal.signal(signal.SIGALRM, lambda *_: _raise_asked())
    # Once Python has given up its handlers, the timer would kill the process.
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)
    # Weakref callbacks, `__del__` and the like let no exception out, and a signal may come within one.
    sys.unraisablehook = ignored
    if _writing:
        _ask(PATIENCE)
    else:
        raise KeyboardInterrupt


def _ask(seconds: float) -> None:
    global _asked
    _asked = True
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _raise_asked() -> None:
    global _asked
    if _asked:
        _asked = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt


def _swallowed(error: BaseException | None) -> bool:
    """Whether an ignored exception is an interrupt or came of one, other than the one now being handled."""
    handled = sys.exception()
    while error is not None and error is not handled:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False
