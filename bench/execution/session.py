"""A driver's session on an experiment: its steps before and after it runs trials.

At its start the driver sends records and closes runs that earlier processes left behind. At its end it
releases its claims.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tensorbench.methods import UserError
from tensorbench.plan.rows import Plan
from tensorbench.records.record import Record
from tensorbench.records.words import Status
from tensorbench.store.changes import changed_plugins
from tensorbench.store.claims import EXPIRY, Claims
from tensorbench.store.connect import StoreError, StoreFailedError, StoreRefusedError
from tensorbench.store.outbox import Outbox, UnreadableRecordError
from tensorbench.store.store import Store

#: Seconds for the last writes after a signal to stop: SLURM kills soon after SIGTERM.
CLOSING = 4.0
#: Seconds for the last writes during an outage.
BRIEFLY = 0.5
#: Seconds for the last writes at a normal end. Another process may lock the file for so long.
AT_LEISURE = 60.0

#: Seconds between two tries to get a turn.
LOOK = 0.2

#: A record is put aside when a reachable store has failed to store it this many times.
STRIKES = 3


def within(seconds: float, close: Callable[[], None]) -> bool:
    """Calls `close` and waits at most `seconds` for its end, so that no unreachable server delays the exit.

    Returns whether `close` has ended. A StoreError of `close` is ignored. Whatever stays open in the store is
    closed at the next start.
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
    """A driver that works on an experiment. Other drivers see its signs of life and its claims."""

    store: Store
    claims: Claims
    #: The number of records of earlier processes that were sent at the start.
    sent: int
    #: The number of open runs of dead drivers that were closed at the start.
    closed: int
    #: Called with notes for the user.
    notify: Callable[[str], None] = lambda text: None
    #: The plug-ins whose changes have already caused a warning.
    _warned: set[str] = field(default_factory=set, repr=False)

    def warn_of_changed_plugins(self, records: Iterable[Record]) -> None:
        """Warns once of each plug-in whose source has changed since a run in `records`."""
        for plugin, warning in changed_plugins(records):
            if plugin not in self._warned:
                self._warned.add(plugin)
                warnings.warn(warning, stacklevel=2)


@contextmanager
def session(store: Store, notify: Callable[[str], None] = lambda text: None) -> Iterator[Session]:
    """A context with the session of a new driver. Its claims end on exit. `notify` is called with notes.

    On entry the driver sends the records and closes the runs that earlier processes left behind. Raises
    StoreError if the store cannot be reached.
    """
    claims = Claims(store)
    claims.open()
    try:
        # A record that a reachable store rejects does not delay other records.
        sent = sum(_sent(kept, store, claims) for kept in Outbox(store.outbox).left())
        closed = claims.close_stale()
        claims.sweep()
        yield Session(store, claims, sent, closed, notify)
    finally:
        Outbox(store.outbox).close()
        # An outage may end at this moment.
        within(CLOSING if store.online else BRIEFLY, claims.close)


@contextmanager
def turn(session: Session, purpose: str, doing: str) -> Iterator[None]:
    """A context that only one driver of the experiment at a time enters for a purpose. The others wait.

    `purpose` identifies the context in the store, where it is claimed like a trial. `doing` completes the
    note to the user of a driver that waits: "Another start of … copies trials from packs".
    """
    claims = session.claims

    def take() -> bool:
        return claims.take(purpose, claims.taken(), claims.living())

    if not take():
        session.notify(
            f"Another start of '{session.store.name}' {doing}. Waiting for it: for {EXPIRY:.0f} seconds at "
            "most, if it has died on another machine."
        )
        while not take():
            time.sleep(LOOK)
    try:
        yield
    finally:
        claims.settle(purpose)


def begin_suite(session: Session, plan: Plan) -> str:
    """Opens the run for the suite itself as `Store.begin_suite` does, and returns the run's id.

    If the suite names branches of the hub, only one driver at a time opens the run. Otherwise two first
    starts could store different commits of a branch that moved between them.
    """
    doing = "stores the commits of its branches"
    with turn(session, "commits", doing) if plan.suite.commits else nullcontext():
        return session.store.begin_suite(plan, session.claims.driver)


@contextmanager
def suite_run(session: Session, plan: Plan) -> Iterator[str]:
    """A context that opens an MLflow run for the suite itself and yields the run's id.

    The run holds the plan, which reports read. It is marked as finished on a normal exit and as killed after
    an error.
    """
    store = session.store
    run_id = begin_suite(session, plan)
    status: Literal[Status.FINISHED, Status.KILLED] = Status.KILLED
    try:
        yield run_id
        status = Status.FINISHED
    finally:
        seconds = AT_LEISURE if status == Status.FINISHED else CLOSING
        if store.online and not within(seconds, lambda: store.end(run_id, status)):
            store.online = False


def _sent(kept: Path, store: Store, claims: Claims) -> bool:
    """Sends the record that an ended process left in the folder `kept`, and returns whether this succeeded.

    Otherwise warns that the record was put aside or still waits. Raises StoreError in an outage.
    """
    for attempt in range(STRIKES):
        try:
            Outbox.send(kept, store.send)
            return True
        except (StoreRefusedError, UnreadableRecordError) as error:
            put_aside(error, Outbox.refuse(kept))
            return False
        except StoreError as error:
            # Raises in an outage.
            claims.beat()
            if attempt < STRIKES - 1:
                continue
            if isinstance(error, StoreFailedError):
                put_aside(error, Outbox.refuse(kept))
            else:
                warnings.warn(f"{error}; the record still waits at {kept}", stacklevel=2)
    return False


def put_aside(error: UserError, path: Path) -> None:
    """Warns that the store does not accept a record, and names the folder `path` in which it is kept."""
    warnings.warn(f"{error}; the record is kept at {path}", stacklevel=2)
