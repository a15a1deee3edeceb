"""Claims of trials, and signs of life, where several drivers work on one experiment.

MLflow has no compare-and-set, but the name of a registered model is unique in every store. So a claim is a
registered model, named after the experiment, the trial and the attempt: of two drivers that create it, one
succeeds. A driver shows that it lives by a tag of the experiment, its sign, which it changes every few
seconds. A claim of a dead driver is never taken away. Instead, one of the drivers that wait claims the next
attempt at the same trial. All claims on a trial are deleted when it has its result.
"""

from __future__ import annotations

import json
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException

from bench.machine.alive import dead, owner
from bench.records.record import Record, latest
from bench.records.words import Status, Tag
from bench.store.connect import StoreError, insisting
from bench.store.outbox import Outbox
from bench.store.queries import PAGE, every_page
from bench.store.store import Store

#: Prefixes of the names of claims, and of the keys of signs.
PREFIX = "tensorbench-claim"
SIGN = "driver."

#: MLflow's error codes for a model that is there already, and for one that is not there.
THERE, GONE = "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"

#: Seconds between two signs of life while the store answers, and between two attempts while it does not.
BEAT, PROBE = 10.0, 2.0
#: A driver that gives no sign for so many seconds is dead. The driver that waits for it counts them by its
#: own clock, so that clocks of different machines are never compared.
EXPIRY = 60.0


class Claims:
    """The claims of one driver on one experiment. Raises StoreError where the store cannot be reached."""

    #: The drivers of this process that have ended. Their sign stays where the store was away.
    _ended: set[str] = set()

    def __init__(self, store: Store) -> None:
        self._store = store
        self._client = store.client
        self._experiment = store.experiment.experiment_id
        self.driver = uuid.uuid4().hex[:12]
        #: The last sign of each driver, and when this driver saw it first (seconds, monotonic).
        self._signs: dict[str, tuple[str, float]] = {}
        #: When this driver last found the store to be away, or back. Until then none could give a sign, so
        #: that none is late before `EXPIRY` has gone by since.
        self._back = -math.inf
        self._beats = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)

    def open(self) -> None:
        """Gives the first sign of life, and goes on until `close`."""
        self.beat()
        self._thread.start()

    def close(self) -> None:
        """Ends the signs of life, so that other drivers may run what this one claimed and did not settle.

        It also closes open runs of this driver, such as one whose creation the store could not confirm.
        """
        self._closing.set()
        self._ended.add(self.driver)
        # A sign that is on its way would come after the end.
        self._thread.join()
        self._forget(self.driver)
        for run in self._store.running(self.driver):
            self._store.end(run.run_id, Status.KILLED)
        # Who died while this driver was at work was not known at its start.
        self.close_stale()
        self.sweep()

    @insisting
    def _forget(self, driver: str) -> None:
        """Deletes a driver's sign of life."""
        try:
            self._client.delete_experiment_tag(self._experiment, SIGN + driver)
        except MlflowException as error:
            if error.error_code != GONE:
                raise

    @insisting
    def beat(self) -> None:
        """Gives a sign of life."""
        self._beats += 1
        sign = json.dumps({"owner": owner(), "beat": self._beats})
        self._client.set_experiment_tag(self._experiment, SIGN + self.driver, sign)

    def _keep_beating(self) -> None:
        """Gives signs of life, and notices when the store goes away and when it is back."""
        last = time.monotonic()
        while not self._closing.wait(PROBE):
            if self._store.online and time.monotonic() < last + BEAT:
                continue
            try:
                self.beat()
            except StoreError:
                self._store.online = False
                continue
            last = time.monotonic()
            if not self._store.online:
                self._back, self._store.online = last, True

    @insisting
    def living(self) -> set[str]:
        """The drivers that give signs of life, this one included."""
        now = time.monotonic()
        try:
            signs = self.signs()
        except BaseException:
            self._back = now
            raise
        living = {self.driver}
        for driver, sign in signs.items():
            if self._signs.get(driver, ("", 0.0))[0] != sign:
                self._signs[driver] = sign, now
            late = now - max(self._signs[driver][1], self._back) >= EXPIRY
            if not (late or driver in self._ended or dead(_owner(sign))):
                living.add(driver)
        return living

    @insisting
    def signs(self) -> dict[str, str]:
        """The sign of every driver that has not closed, by driver."""
        tags = self._client.get_experiment(self._experiment).tags
        return {key.removeprefix(SIGN): sign for key, sign in tags.items() if key.startswith(SIGN)}

    @insisting
    def taken(self) -> dict[str, tuple[int, str]]:
        """The latest attempt at each trial that is claimed, and the driver that claimed it."""
        latest: dict[str, tuple[int, str]] = {}
        for claim in self._claims():
            trial, attempt = claim.name.split(".")[-2:]
            this = int(attempt), claim.tags.get(Tag.DRIVER, "")
            latest[trial] = max(latest.get(trial, (0, "")), this)
        return latest

    def _name(self, *parts: str) -> str:
        return ".".join((PREFIX, self._experiment, *parts))

    def _claims(self, *trial: str) -> Iterator[RegisteredModel]:
        """The claims on this experiment's trials, or on one of them."""
        start = self._name(*trial, "")
        models = every_page(
            lambda token: self._client.search_registered_models(
                f"name LIKE '{start}%'", max_results=PAGE, page_token=token
            )
        )
        # For some databases LIKE does not tell small letters from capitals.
        return (claim for claim in models if claim.name.startswith(start))

    @insisting
    def take(self, trial: str, taken: dict[str, tuple[int, str]], living: set[str]) -> bool:
        """Claims a trial, given the results of `taken` and `living`. Returns False if another driver has it.

        A driver that succeeds must look whether the trial was settled meanwhile.
        """
        attempt, driver = taken.get(trial, (0, ""))
        if driver == self.driver:
            # Also where the store took the claim and could not tell so.
            return True
        if driver in living:
            return False
        name = self._name(trial, str(attempt + 1))
        try:
            self._client.create_registered_model(name, {Tag.DRIVER: self.driver, Tag.OWNER: owner()})
        except MlflowException as error:
            if error.error_code != THERE:
                raise
            # A request whose answer was lost is repeated, and meets this driver's own claim.
            return self._holder(name) == self.driver
        return True

    def _holder(self, name: str) -> str | None:
        """The driver of a claim. None if the claim is gone because its trial was just settled."""
        try:
            model = self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != GONE:
                raise
            return None
        holder: str | None = model.tags.get(Tag.DRIVER)
        return holder

    @insisting
    def settle(self, trial: str) -> None:
        """Deletes all claims on a trial that has its result."""
        # A list, because pages would shift with every deleted claim.
        for claim in list(self._claims(trial)):
            try:
                self._client.delete_registered_model(claim.name)
            except MlflowException as error:
                if error.error_code != GONE:
                    raise

    @insisting
    def stale(self) -> list[Record]:
        """The runs that dead drivers left open."""
        # In this order: a driver gives its first sign before it opens a run.
        open_runs, living = self._store.running(), self.living()

        def gone(run: Record) -> bool:
            driver = run.tag(Tag.DRIVER)
            return driver not in living if driver else dead(run.tag(Tag.OWNER))

        stale = [run for run in open_runs if gone(run)]
        # A driver that ended in between had closed its runs before it took back its sign.
        still = {run.run_id for run in self._store.running()} if stale else set()
        return [run for run in stale if run.run_id in still]

    @insisting
    def silent(self) -> set[str]:
        """The dead drivers whose signs are still there."""
        # In this order: one that gives its first sign meanwhile lives.
        there = self.signs()
        return there.keys() - self.living()

    @insisting
    def close_stale(self) -> int:
        """Marks open runs of dead drivers as killed and deletes their signs. Returns the number of runs."""
        stale = self.stale()
        for run in stale:
            self._store.end(run.run_id, Status.KILLED)
        for driver in self.silent():
            self._forget(driver)
        return len(stale)

    @insisting
    def left(self) -> list[str]:
        """Trials with a result whose claims dead drivers left.

        A driver that has just looked at the claims may retry a trial that did not finish. So claims on such
        trials are still needed while another driver is at work.
        """
        taken = self.taken()
        if not taken:
            return []
        living, records = self.living(), latest(self._store.records())
        other_drivers = living - {self.driver}

        def done(trial: str) -> bool:
            record = records.get(trial)
            return bool(
                record and (record.status == Status.FINISHED or (record.settled and not other_drivers))
            )

        return [trial for trial, (_, driver) in taken.items() if driver not in living and done(trial)]

    def sweep(self) -> None:
        """Deletes claims that dead drivers left on trials that have their result."""
        for trial in self.left():
            self.settle(trial)


def _owner(sign: str) -> str:
    owner: str = json.loads(sign)["owner"]
    return owner


#: Seconds between two looks at the signs of drivers.
LOOK = 0.5


@dataclass(frozen=True)
class Leftovers:
    """Remains of dead drivers in one experiment."""

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
    """Names of a store's experiments, without MLflow's own Default."""
    return [store.name for store in Store.every(uri) if store.name != "Default"]


def leftovers(store: Store, watching: Callable[[int], None], *, delete: bool) -> Leftovers:
    """Finds remains of dead drivers. `delete` removes them, except records on disk.

    Only time tells whether drivers on other machines live. `watching` hears their number; then this waits
    until each has given a sign of life, or none for `EXPIRY` seconds.
    """
    claims = Claims(store)
    _watch(claims, watching)
    # In this order: a driver gives its first sign of life before it claims.
    taken = claims.taken()
    living = claims.living() - {claims.driver}
    # Without any driver at work nobody asks which attempt at a trial is the next.
    needless = claims.left() if living else list(taken)
    waiting, refused = Outbox(store.outbox).everything()
    left = Leftovers(
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
    return left


def _watch(claims: Claims, watching: Callable[[int], None]) -> None:
    """Waits until every driver has given a sign of life or has been silent for `EXPIRY` seconds."""
    first, until = claims.signs(), time.monotonic() + EXPIRY
    living = claims.living() - {claims.driver}
    if living:
        watching(len(living))
    while any(claims.signs().get(driver) == first.get(driver) for driver in living):
        if time.monotonic() >= until:
            break
        time.sleep(LOOK)
        living = claims.living() - {claims.driver}
