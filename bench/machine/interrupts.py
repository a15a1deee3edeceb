"""Handles Ctrl-C and SIGTERM. The first signal stops the program in order, the second ends it at once.

The first raises KeyboardInterrupt. If it arrives during a write or an import, the exception is raised at the
end of the write or import. Otherwise a library could swallow it, leave a transaction open, or convert it to
an error of its own.

If the program has not ended within its time in `LIMITS`, a thread ends it and its child processes. No
finished trial is lost: the next start closes open runs, as after a crash.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

#: Seconds from a signal to the end of the program. A person waits for Ctrl-C, a batch system sends SIGTERM.
LIMITS = {signal.SIGINT: 1.5, signal.SIGTERM: 9.0}
SIGNALS = tuple(LIMITS)
#: The longest time in seconds for which an interrupt waits for a write to end, since a server may never
#: answer.
PATIENCE = 1
#: The time in seconds after which an interrupt is tried again, if Python swallowed it or an import was
#: running.
RETRY = 0.05

#: The file name of Python's import machinery.
_IMPORTER = "<frozen importlib._bootstrap>"

#: The number of nested `deferred` contexts in the main thread.
_writing = 0
#: Whether an interrupt waits to be raised: at the end of a write, before the next write, or by the timer.
_pending = False


def install() -> None:
    """Makes Ctrl-C and SIGTERM raise KeyboardInterrupt, but not during a write or an import."""
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    # Python writes the numbers of signals into this pipe at once. It calls handlers only when the main thread
    # returns from a call of C code, which may take long.
    arrived, written = os.pipe()
    os.set_blocking(written, False)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    threading.Thread(target=_end_in_time, args=(arrived,), daemon=True).start()


def _end_in_time(arrived: int) -> None:
    """Waits for a signal, then for its time in `LIMITS`, and then ends the program and its children."""
    while (number := os.read(arrived, 1)[0]) not in SIGNALS:
        pass
    time.sleep(LIMITS[signal.Signals(number)])
    # Importing it now could wait for an import of the main thread.
    if psutil := sys.modules.get("psutil"):
        with suppress(Exception):
            for child in psutil.Process().children(recursive=True):
                child.kill()
    # A progress bar may have hidden the cursor.
    os.write(2, b"\x1b[?25h" * os.isatty(2) + b"stopped\n")
    os._exit(130)


@contextmanager
def deferred() -> Iterator[None]:
    """A context for a write, in which interrupts of the main thread wait until its end.

    They wait for at most `PATIENCE` seconds. An interrupt that already waits is raised when the context is
    entered. Other threads are never interrupted.
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
    """Raises an interrupt that waits. If an import is running, tries again after `RETRY` seconds."""
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
    """Raises KeyboardInterrupt if an interrupt waits to be raised."""
    global _pending
    if _pending:
        _pending = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt


def _swallowed(error: BaseException | None) -> bool:
    """Whether Python swallowed a KeyboardInterrupt, given an exception that it ignored.

    This is so if the exception is a KeyboardInterrupt, or arose while one was handled. An interrupt that the
    program is handling right now does not count.
    """
    handled = sys.exception()
    while error is not None and error is not handled:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False
