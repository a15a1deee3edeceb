"""Ctrl-C and SIGTERM: once to close what is open and stop, twice to end at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Seconds that an interrupt waits for the end of a write, where a server may be silent.
PATIENCE = 3

_writing = 0
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
    global _writing, _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _writing += 1
    try:
        yield
    finally:
        _writing -= 1
        if _asked and not _writing:
            _asked = False
            signal.alarm(0)
            raise KeyboardInterrupt


def _interrupt(number: int, frame: object) -> None:
    global _asked
    interrupted = time.monotonic()

    def end(number: int, frame: object) -> None:
        # A terminal and a batch system may both pass on one and the same.
        if time.monotonic() - interrupted > 0.5:
            os._exit(130)

    def late(number: int, frame: object) -> None:
        global _asked
        _asked = False
        raise KeyboardInterrupt

    for other in SIGNALS:
        signal.signal(other, end)
    if _writing:
        _asked = True
        signal.signal(signal.SIGALRM, late)
        signal.alarm(PATIENCE)
    else:
        raise KeyboardInterrupt
