"""One driver at work on an experiment: what it sends, closes and claims."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from bench.store.claims import Claims
from bench.store.connect import StoreError, StoreRefusedError
from bench.store.outbox import Outbox, UnreadableLetterError
from bench.store.store import Store

#: Seconds for the last words to a store: SLURM kills soon after it has terminated.
CLOSING = 4.0


def within(seconds: float, close: Callable[[], None]) -> bool:
    """Whether `close` came to an end in time: a silent server must not hold up who was told to stop.

    What the store does not take then, the next start finds open and closes.
    """

    def closing() -> None:
        with suppress(StoreError):
            close()

    thread = threading.Thread(target=closing, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


class Session:
    """One driver at work on an experiment: it shows that it lives, and others can tell what it runs."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.claims = Claims(store)
        #: What was found at the start: records sent late, runs of dead drivers closed.
        self.sent = self.closed = 0


@contextmanager
def session(store: Store) -> Iterator[Session]:
    """Sends what earlier processes could not, closes what they left open, and holds claims while it lasts."""
    made = Session(store)
    made.claims.open()
    try:
        made.sent = send_left(store)
        made.closed = made.claims.close_stale()
        yield made
    finally:
        Outbox(store.outbox).close()
        within(CLOSING, made.claims.close)


def send_left(store: Store) -> int:
    """Sends the records in this machine's outbox that processes left which are gone; returns how many."""
    sent = 0
    for kept in Outbox(store.outbox).left():
        try:
            Outbox.send(kept, store.send)
            sent += 1
        except (StoreRefusedError, UnreadableLetterError) as error:
            warnings.warn(f"{error}; the record is kept at {Outbox.refuse(kept)}", stacklevel=2)
    return sent
