"""What drivers that died left in a store and beside it, which no start has swept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.store.claims import EXPIRY, Claims
from bench.store.outbox import Outbox
from bench.store.store import Store
from bench.wire.record import Record

#: Seconds between two looks at the signs of drivers.
LOOK = 0.5


@dataclass(frozen=True)
class Leftovers:
    """What is left over of one experiment."""

    experiment: str
    #: The trials that have claims of dead drivers, and need none.
    claims: list[str]
    #: Runs that dead drivers left open.
    runs: list[Record]
    #: Dead drivers whose signs of life are still there.
    drivers: list[str]
    #: Records on this machine: those that the next start sends, and those that the store did not take.
    waiting: list[Path]
    refused: list[Path]


def experiments(uri: str) -> list[str]:
    """The names of a store's experiments that drivers have worked on, or may have."""
    return [store.name for store in Store.every(uri) if store.name != "Default"]


def leftovers(store: Store, watching: Callable[[int], None], *, delete: bool) -> Leftovers:
    """Looks for what is left over, and deletes it where asked to: records on disk never.

    Of drivers elsewhere only time tells whether they live: `watching` hears how many there are, and this
    waits until each has given a sign, or none for so long that it counts as dead.
    """
    claims = Claims(store)
    _watch(claims, watching)
    # In this order: a driver gives its first sign of life before it claims.
    taken = claims.taken()
    living = claims.living() - {claims.driver}
    # Without any driver at work nobody asks which attempt at a trial is the next.
    needless = claims.left() if living else list(taken)
    waiting, refused = Outbox(store.outbox).everything()
    found = Leftovers(
        store.name,
        sorted(needless),
        claims.stale(),
        sorted(claims.silent()),
        waiting,
        refused,
    )
    if delete:
        claims.close_stale()
        for trial in needless:
            claims.settle(trial)
    return found


def _watch(claims: Claims, watching: Callable[[int], None]) -> None:
    """Waits until every driver has given a sign of life, or none for so long that it is dead."""
    first, until = claims.signs(), time.monotonic() + EXPIRY
    living = claims.living() - {claims.driver}
    if living:
        watching(len(living))
    while any(claims.signs().get(driver) == first.get(driver) for driver in living):
        if time.monotonic() >= until:
            break
        time.sleep(LOOK)
        living = claims.living() - {claims.driver}
