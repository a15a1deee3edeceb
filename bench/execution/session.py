"""One driver at work on an experiment: what it sends, closes and claims."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bench.plan.rows import Plan
from bench.store.changes import changed_plugins
from bench.store.claims import Claims
from bench.store.connect import StoreError, StoreFailedError, StoreRefusedError
from bench.store.outbox import Outbox, UnreadableRecordError
from bench.store.store import Store
from bench.wire.record import Record
from bench.wire.words import Status
from methods import UserError

#: Seconds for what is written when a program is told to stop: SLURM kills soon after it has sent SIGTERM.
CLOSING = 4.0
#: Seconds for it where the store is known to be away.
BRIEFLY = 0.5
#: Seconds for it at a normal end: nobody waits, and another process may hold the file.
AT_LEISURE = 60.0

#: How often the store must fail at a record, and answer others, until the record is put aside.
STRIKES = 3


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
    #: What it has told of, of which plug-ins changed since stored trials ran.
    _told: set[str] = field(default_factory=set, repr=False)

    def warn_of_changed_plugins(self, records: Iterable[Record]) -> None:
        """Warns of results that are kept and come from another source of a plug-in, once for each."""
        for what, said in changed_plugins(records):
            if what not in self._told:
                self._told.add(what)
                warnings.warn(said, stacklevel=2)


@contextmanager
def session(store: Store) -> Iterator[Session]:
    """Sends what earlier processes could not, closes what they left open, and holds claims while it lasts."""
    claims = Claims(store)
    claims.open()
    try:
        sent = _send_left(store, claims)
        closed = claims.close_stale()
        claims.sweep()
        yield Session(store, claims, sent, closed)
    finally:
        Outbox(store.outbox).close()
        # A store that is away may be back in this moment.
        within(CLOSING if store.online else BRIEFLY, claims.close)


@contextmanager
def suite_run(at_work: Session, plan: Plan) -> Iterator[str]:
    """Keeps the suite's own run open, and gives its id. It holds the plan, which reports read."""
    store = at_work.store
    run_id = store.begin_suite(plan, at_work.claims.driver)
    status: Literal[Status.FINISHED, Status.KILLED] = Status.KILLED
    try:
        yield run_id
        status = Status.FINISHED
    finally:
        seconds = AT_LEISURE if status == Status.FINISHED else CLOSING
        if store.online and not within(seconds, lambda: store.end(run_id, status)):
            store.online = False


def _send_left(store: Store, claims: Claims) -> int:
    """Sends the records in this machine's outbox that ended processes left; returns how many.

    One that the store does not take, while it does other things, holds up nothing. Raises StoreError where
    the store is away.
    """
    return sum(_sent(kept, store, claims) for kept in Outbox(store.outbox).left())


def _sent(kept: Path, store: Store, claims: Claims) -> bool:
    for attempt in range(STRIKES):
        try:
            Outbox.send(kept, store.send)
            return True
        except (StoreRefusedError, UnreadableRecordError) as error:
            put_aside(error, Outbox.refuse(kept))
            return False
        except StoreError as error:
            # This one goes up where the store is away.
            claims.beat()
            if attempt < STRIKES - 1:
                continue
            if isinstance(error, StoreFailedError):
                put_aside(error, Outbox.refuse(kept))
            else:
                warnings.warn(f"{error}; the record still waits at {kept}", stacklevel=2)
    return False


def put_aside(error: UserError, where: Path) -> None:
    """Tells of a record that cannot be stored."""
    warnings.warn(f"{error}; the record is kept at {where}", stacklevel=2)
