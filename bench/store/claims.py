"""Claims of trials, and signs of life, for several drivers that work on one experiment.

MLflow has no compare-and-set, but the name of a registered model is unique in every store. So a claim is a
registered model, named after the experiment, the trial and the attempt: if two drivers create it, one
succeeds. A driver shows that it is alive by its sign, a tag of the experiment that it changes every few
seconds. A dead driver's claim is never taken away. Instead, a waiting driver claims the next attempt at the
same trial. When a trial has its result, all claims on it are deleted.
"""

from __future__ import annotations

import json
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException

from tensorbench.machine.alive import dead, owner
from tensorbench.records.record import Record, latest
from tensorbench.records.words import Status, Tag
from tensorbench.store import DEFAULT_STORE
from tensorbench.store.artifacts import artifacts_of_run, remove_unfinished
from tensorbench.store.connect import StoreError, insisting
from tensorbench.store.outbox import Outbox
from tensorbench.store.queries import PAGE, every_page
from tensorbench.store.store import Store

#: PREFIX begins the names of claims, and SIGN the keys of the tags with signs of life.
PREFIX = "tensorbench-claim"
SIGN = "driver."

#: MLflow's error codes for a model that exists already, and for one that does not exist.
THERE, GONE = "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"

#: Seconds between signs of life while the store answers, and between attempts while it does not.
BEAT, PROBE = 10.0, 2.0
#: Seconds without a sign after which another driver counts as dead. Each driver measures them by its own
#: clock, so that clocks of different machines are never compared.
EXPIRY = 60.0


class Claims:
    """The claims of one driver on one experiment. Raises StoreError if the store cannot be reached."""

    #: The drivers of this process that have ended. Their signs remain if the store was unreachable.
    _ended: set[str] = set()

    def __init__(self, store: Store) -> None:
        self._store = store
        self._client = store.client
        self._experiment = store.experiment.experiment_id
        self.driver = uuid.uuid4().hex[:12]
        #: The last sign of each driver, and the monotonic time when this driver first saw it.
        self._signs: dict[str, tuple[str, float]] = {}
        #: The last time at which the store was unreachable or came back. While it was unreachable, no driver
        #: could give a sign. So no driver is late until `EXPIRY` seconds after this time.
        self._back = -math.inf
        self._beats = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)

    def open(self) -> None:
        """Gives the first sign of life. Further signs follow until `close`."""
        self.beat()
        self._thread.start()

    def close(self) -> None:
        """Ends the signs of life, so that other drivers may run the unsettled trials that this one claimed.

        Also closes this driver's runs that are still open, for example because the connection broke while one
        was created. Then removes what other dead drivers left, as `close_stale` and `sweep` do.
        """
        self._closing.set()
        self._ended.add(self.driver)
        # Wait for a sign that is being sent, which would otherwise arrive after the end.
        self._thread.join()
        self._forget(self.driver)
        for run in self._store.running(self.driver):
            self._store.end(run.run_id, Status.KILLED)
        # Other drivers may have died since this one started.
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
        """Returns the drivers that are alive, including this one."""
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
            if not (late or driver in self._ended or dead(json.loads(sign)["owner"])):
                living.add(driver)
        return living

    @insisting
    def signs(self) -> dict[str, str]:
        """Returns the latest sign of life of each driver, by driver. A driver that has closed has none."""
        tags = self._client.get_experiment(self._experiment).tags
        return {key.removeprefix(SIGN): sign for key, sign in tags.items() if key.startswith(SIGN)}

    @insisting
    def taken(self) -> dict[str, tuple[int, str]]:
        """Returns the number of each claimed trial's latest attempt, from 1, and the driver that claimed it.

        Keys are trial ids.
        """
        latest: dict[str, tuple[int, str]] = {}
        for claim in self._claims():
            trial, attempt = claim.name.split(".")[-2:]
            this = int(attempt), claim.tags.get(Tag.DRIVER, "")
            latest[trial] = max(latest.get(trial, (0, "")), this)
        return latest

    def _name(self, *parts: str) -> str:
        return ".".join((PREFIX, self._experiment, *parts))

    def _claims(self, *trial: str) -> Iterator[RegisteredModel]:
        """Yields the claims on all trials of this experiment, or on the given trial."""
        start = self._name(*trial, "")
        models = every_page(
            lambda token: self._client.search_registered_models(
                f"name LIKE '{start}%'", max_results=PAGE, page_token=token
            )
        )
        # In some databases LIKE ignores case.
        return (claim for claim in models if claim.name.startswith(start))

    @insisting
    def take(self, trial: str, taken: dict[str, tuple[int, str]], living: set[str]) -> bool:
        """Claims a trial. Returns False if a living driver has claimed it already.

        `taken` and `living` are the results of the methods with these names. After a successful claim, the
        driver must check whether the trial has been settled meanwhile.
        """
        attempt, driver = taken.get(trial, (0, ""))
        if driver == self.driver:
            # This is also the case if the store accepted the claim but its answer was lost.
            return True
        if driver in living:
            return False
        name = self._name(trial, str(attempt + 1))
        try:
            self._client.create_registered_model(name, {Tag.DRIVER: self.driver, Tag.OWNER: owner()})
        except MlflowException as error:
            if error.error_code != THERE:
                raise
            # A request whose answer was lost is repeated, and then finds this driver's own claim.
            return self._holder(name) == self.driver
        return True

    def _holder(self, name: str) -> str | None:
        """Returns the driver of a claim. None if the claim is gone because its trial was just settled."""
        try:
            model = self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != GONE:
                raise
            return None
        holder: str | None = model.tags.get(Tag.DRIVER)
        return holder

    @insisting
    def settle(self, trial: str, attempts: float = math.inf) -> None:
        """Deletes the claims on a trial that has its result, or only those on its first `attempts`."""
        # The claims are listed first, because pages shift with every deleted claim.
        for claim in list(self._claims(trial)):
            if int(claim.name.rpartition(".")[2]) > attempts:
                continue
            try:
                self._client.delete_registered_model(claim.name)
            except MlflowException as error:
                if error.error_code != GONE:
                    raise

    @insisting
    def stale(self) -> list[Record]:
        """Returns the runs of dead drivers that are still open."""
        # Read runs first: a driver gives its first sign before it opens a run.
        open_runs, living = self._store.running(), self.living()

        def gone(run: Record) -> bool:
            driver = run.tag(Tag.DRIVER)
            return driver not in living if driver else dead(run.tag(Tag.OWNER))

        stale = [run for run in open_runs if gone(run)]
        # A driver that ended in between closed its runs before it deleted its sign.
        still = {run.run_id for run in self._store.running()} if stale else set()
        return [run for run in stale if run.run_id in still]

    @insisting
    def silent(self) -> set[str]:
        """Returns the dead drivers whose last sign of life is still stored."""
        # Read signs first: a driver that gives its first sign in between is alive.
        there = self.signs()
        return there.keys() - self.living()

    @insisting
    def close_stale(self) -> int:
        """Marks open runs of dead drivers as killed, and deletes the signs of dead drivers.

        Removes unfinished copies beside the artifacts of these runs.

        Returns the number of these runs.
        """
        stale = self.stale()
        for run in stale:
            self._store.end(run.run_id, Status.KILLED)
            if (artifacts := artifacts_of_run(run.artifacts)) is not None:
                remove_unfinished(artifacts, every=True)
        for driver in self.silent():
            self._forget(driver)
        return len(stale)

    @insisting
    def left(self) -> dict[str, int]:
        """Returns the trials that have a result but also claims of dead drivers, which are obsolete.

        Each has the number of its latest attempt. A later claim is that of a driver which has started since.
        While another driver is alive, failed trials are left out. That driver may be about to retry them, and
        may have read the claims on them already.
        """
        taken = self.taken()
        living = self.living() if taken else set()
        other_drivers = living - {self.driver}

        def done(trial: str) -> bool:
            # One trial at a time: few claims are those of dead drivers, and a store may be large.
            record = latest(self._store.records(trial_id=trial)).get(trial)
            return bool(
                record and (record.status == Status.FINISHED or (record.settled and not other_drivers))
            )

        return {
            trial: attempt
            for trial, (attempt, driver) in taken.items()
            if driver not in living and done(trial)
        }

    def sweep(self) -> None:
        """Deletes the claims on the trials that `left` returns."""
        for trial, attempts in self.left().items():
            self.settle(trial, attempts)


#: Seconds between two reads of the drivers' signs.
LOOK = 0.5


@dataclass(frozen=True)
class Leftovers:
    """Claims, runs, signs of life and records that dead drivers left behind in one experiment."""

    experiment: str
    #: The trials with obsolete claims of dead drivers.
    claims: list[str]
    #: The open runs of dead drivers.
    runs: list[Record]
    #: The dead drivers whose last sign of life is still stored.
    drivers: list[str]
    #: Folders of records on this machine's disk: `waiting` will be sent by the next start, `refused` were
    #: refused by the store.
    waiting: list[Path]
    refused: list[Path]

    @property
    def removable(self) -> list[str]:
        """A line for each claim, open run and sign of life. Only these can be deleted or closed."""
        return [
            *(f"claims on trial {trial}" for trial in self.claims),
            *(f"open run {run.run_id}: {run.name}" for run in self.runs),
            *(f"sign of life of dead driver {driver}" for driver in self.drivers),
        ]

    @property
    def lines(self) -> list[str]:
        """A line for each leftover."""
        return [
            *self.removable,
            *(f"record that the next start sends: {path}" for path in self.waiting),
            *(f"record that the store refused: {path}" for path in self.refused),
        ]


def find_leftovers(
    *experiments: str,
    store: str = DEFAULT_STORE,
    watching: Callable[[str, int], None] = lambda *_: None,
    delete: bool = False,
) -> Iterator[Leftovers]:
    """Yields what dead drivers left behind in each experiment, or in all experiments of the store.

    Only signs of life show whether a driver on another machine is alive. So the search waits until each
    driver has given a new sign or counts as dead, for `EXPIRY` seconds at most. Before it waits, it calls
    `watching` with the experiment and the number of drivers that it waits for. `delete` removes what it
    finds, except records on disk.
    """
    # MLflow itself creates the experiment Default.
    every = (each.name for each in Store.every(store) if each.name != "Default")
    for name in experiments or every:
        opened = Store.existing(store, name)
        claims = Claims(opened)
        _watch(claims, partial(watching, name))
        # Read claims first: a driver gives its first sign of life before it claims.
        taken = claims.taken()
        living = claims.living() - {claims.driver}
        # With no driver at work, no claim is needed to determine the next attempt at a trial.
        needless = claims.left() if living else {trial: attempt for trial, (attempt, _) in taken.items()}
        waiting, refused = Outbox(opened.outbox).everything()
        left = Leftovers(name, sorted(needless), claims.stale(), sorted(claims.silent()), waiting, refused)
        if delete:
            claims.close_stale()
            for trial, attempts in needless.items():
                claims.settle(trial, attempts)
        yield left


def _watch(claims: Claims, watching: Callable[[int], None]) -> None:
    """Waits until each other driver has given a new sign or counts as dead."""
    first, until = claims.signs(), time.monotonic() + EXPIRY
    living = claims.living() - {claims.driver}
    if living:
        watching(len(living))
    while any(claims.signs().get(driver) == first.get(driver) for driver in living):
        if time.monotonic() >= until:
            break
        time.sleep(LOOK)
        living = claims.living() - {claims.driver}
