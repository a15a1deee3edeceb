"""Ctrl-C and SIGTERM: the first signal stops the program in order, the second ends the process at once.

An interrupt during a write or an import is raised when that ends. Otherwise a library could swallow it, leave
a transaction open, or convert it to its own error.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Seconds that an interrupt waits for the end of a write, since a server may never answer.
PATIENCE = 3
#: Seconds after which an interrupt that Python swallowed, or that came during an import, is raised again.
RETRY = 0.05

#: The file name of Python's import machinery.
_IMPORTER = "<frozen importlib._bootstrap>"

#: The number of nested writes in progress in the main thread.
_writing = 0
#: Whether an interrupt is pending. It is raised when a write ends, before the next write, or by the timer.
_pending = False


def install() -> None:
    """Makes the signals raise KeyboardInterrupt, after the current write or import."""
    for number in SIGNALS:
        signal.signal(number, _interrupt)


@contextmanager
def deferred() -> Iterator[None]:
    """Context that defers interrupts in the main thread until its end, at most for `PATIENCE` seconds.

    A pending interrupt is raised on entry, a deferred one on exit. Other threads are never interrupted.
    """
    global _writing
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if not _writing:
        raise_pending()
    _writing += 1
    try:
        yield
    finally:
        _writing -= 1
        if not _writing:
            raise_pending()


def _interrupt(number: int, frame: FrameType | None) -> None:
    interrupted = time.monotonic()
    unraisable = sys.unraisablehook

    def end(number: int, frame: object) -> None:
        # A terminal and a batch system may both forward the same signal.
        if time.monotonic() - interrupted > 0.5:
            os._exit(130)

    def ignored(what: sys.UnraisableHookArgs) -> None:
        # While Python exits, there is nothing left to interrupt.
        if _swallowed(what.exc_value) and threading.main_thread().is_alive():
            _ask(RETRY)
        else:
            unraisable(what)

    for other in SIGNALS:
        signal.signal(other, end)
    signal.signal(signal.SIGALRM, _retry)
    # After Python has removed its handlers at exit, the timer would kill the process.
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)
    # A signal may arrive in a weakref callback or a `__del__`, which cannot raise.
    sys.unraisablehook = ignored
    if _writing:
        _ask(PATIENCE)
    elif _importing(frame):
        _ask(RETRY)
    else:
        raise KeyboardInterrupt


def _retry(number: int, frame: FrameType | None) -> None:
    """Raises a deferred interrupt, unless an import is still in progress."""
    if _importing(frame):
        _ask(RETRY)
    else:
        raise_pending()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTER:
            return True
        frame = frame.f_back
    return False


def _ask(seconds: float) -> None:
    global _pending
    _pending = True
    signal.setitimer(signal.ITIMER_REAL, seconds)


def raise_pending() -> None:
    """Raises KeyboardInterrupt if an interrupt was deferred."""
    global _pending
    if _pending:
        _pending = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt


def _swallowed(error: BaseException | None) -> bool:
    """Whether an ignored exception is, or arose from, a KeyboardInterrupt that is not being handled now."""
    handled = sys.exception()
    while error is not None and error is not handled:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False
