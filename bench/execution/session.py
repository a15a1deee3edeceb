"""One driver at work on an experiment: what it sends, closes and claims."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from bench.store.claims import Claims
from bench.store.connect import StoreError, StoreRefusedError
from bench.store.outbox import Outbox, UnreadableLetterError
from bench.store.store import Store

#: Seconds for what is written when a program is told to stop: SLURM kills soon after it has sent SIGTERM.
CLOSING = 4.0
#: Seconds for it where the store is known to be away.
BRIEFLY = 0.5


def within(seconds: float, close: Callable[[], None]) -> bool:
    """Whether `close` came to an end in time: a server that does not answer must not hold up a program that
    was told to stop. What the store does not take, the next start finds open and closes.
    """

    def closing() -> None:
        with suppress(StoreError):
            close()

    thread = threading.Thread(target=closing, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


@dataclass(frozen=True)
class Session:
    """One driver at work on an experiment: it gives signs of life, and others can tell what it runs."""

    store: Store
    claims: Claims
    #: How many records it sent at the start that earlier processes had left.
    sent: int
    #: How many runs it closed at the start that dead drivers had left open.
    closed: int


@contextmanager
def session(store: Store) -> Iterator[Session]:
    """Sends what earlier processes could not, closes what they left open, and holds claims while it lasts."""
    claims = Claims(store)
    claims.open()
    try:
        sent = send_left(store)
        yield Session(store, claims, sent, claims.close_stale())
    finally:
        Outbox(store.outbox).close()
        # A store that is away may be back in this moment.
        within(CLOSING if store.online else BRIEFLY, claims.close)


def send_left(store: Store) -> int:
    """Sends the records in this machine's outbox that ended processes left; returns how many."""
    sent = 0
    for kept in Outbox(store.outbox).left():
        try:
            Outbox.send(kept, store.send)
            sent += 1
        except (StoreRefusedError, UnreadableLetterError) as error:
            warnings.warn(f"{error}; the record is kept at {Outbox.refuse(kept)}", stacklevel=2)
    return sent
