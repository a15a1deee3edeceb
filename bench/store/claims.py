"""Who runs which trial, where several drivers work on one experiment.

MLflow has no compare-and-set, but on every store the name of a registered model is unique. So a claim is
a registered model named after experiment, trial and attempt: of two that create it, one succeeds. A driver
shows that it lives by a tag on the experiment that changes every few seconds. A claim whose driver is dead
is not taken away: the next attempt is claimed instead, by one of those who wait. When the trial has its
result, all its claims are deleted.
"""

from __future__ import annotations

import json
import threading
import time
import uuid

from mlflow.exceptions import MlflowException

from bench.process.alive import dead, owner
from bench.store.connect import StoreError, storing
from bench.store.store import Store
from bench.wire.words import Status, Tag

PREFIX = "tensorbench-claim"
DRIVER = "driver."

#: Seconds between two signs of life, while the store is there and while it is away.
BEAT, PROBE = 10.0, 2.0
#: A driver that gives no sign for so many seconds is dead. They are counted by who waits for it, so that
#: clocks of different machines are never compared.
EXPIRY = 60.0


class Claims:
    """The claims of one driver on one experiment. Raises StoreError where the store is away."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._client = store.client
        self._experiment = store.experiment.experiment_id
        self.driver = uuid.uuid4().hex[:12]
        self._mine: set[str] = set()
        #: Last sign of each driver, and when it was first seen (s, monotonic).
        self._signs: dict[str, tuple[str, float]] = {}
        self._beats = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)

    def open(self) -> None:
        self.beat()
        self._thread.start()

    def close(self) -> None:
        """Ends the heartbeat: what this driver claimed and did not settle is free at once."""
        self._closing.set()
        self._thread.join(1)
        if self._store.online:
            with storing():
                self._client.delete_experiment_tag(self._experiment, DRIVER + self.driver)

    @storing()
    def beat(self) -> None:
        self._beats += 1
        sign = json.dumps({"owner": owner(), "beat": self._beats})
        self._client.set_experiment_tag(self._experiment, DRIVER + self.driver, sign)

    def _keep_beating(self) -> None:
        """Also how the driver learns that the store is away, and that it is back."""
        last = time.monotonic()
        while not self._closing.wait(PROBE):
            if self._store.online and time.monotonic() < last + BEAT:
                continue
            try:
                self.beat()
                last, self._store.online = time.monotonic(), True
            except StoreError:
                self._store.online = False

    @storing()
    def living(self) -> set[str]:
        """The drivers that give signs of life, this one included."""
        now = time.monotonic()
        try:
            tags = self._client.get_experiment(self._experiment).tags
        except BaseException:
            # While the store was away nobody could give one.
            self._signs.clear()
            raise
        living = {self.driver}
        for key, sign in tags.items():
            if not key.startswith(DRIVER):
                continue
            driver = key.removeprefix(DRIVER)
            if self._signs.get(driver, ("", 0.0))[0] != sign:
                self._signs[driver] = sign, now
            if not dead(json.loads(sign)["owner"]) and now - self._signs[driver][1] < EXPIRY:
                living.add(driver)
        return living

    @storing()
    def taken(self) -> dict[str, tuple[int, str]]:
        """The latest attempt at each trial that is claimed, and its driver."""
        start = f"{PREFIX}.{self._experiment}."
        latest: dict[str, tuple[int, str]] = {}
        token = None
        while True:
            page = self._client.search_registered_models(
                f"name LIKE '{start}%'", max_results=500, page_token=token
            )
            for model in page:
                if not model.name.startswith(start):
                    continue
                trial, _, attempt = model.name.removeprefix(start).rpartition(".")
                latest[trial] = max(
                    latest.get(trial, (0, "")), (int(attempt), model.tags.get(Tag.DRIVER, ""))
                )
            token = page.token
            if not token:
                return latest

    @storing()
    def take(self, trial: str, taken: dict[str, tuple[int, str]], living: set[str]) -> bool:
        """Claims a trial, by what `taken` and `living` gave; False if another driver has it.

        Whoever succeeds must look whether the trial was settled meanwhile.
        """
        if trial in self._mine:
            return True
        attempt, driver = taken.get(trial, (0, ""))
        if driver in living:
            return False
        name = f"{PREFIX}.{self._experiment}.{trial}.{attempt + 1}"
        try:
            self._client.create_registered_model(name, {Tag.DRIVER: self.driver, Tag.OWNER: owner()})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            # A request that was sent again, as its answer was lost, finds its own claim.
            if self._holder(name) != self.driver:
                return False
        self._mine.add(trial)
        return True

    def _holder(self, name: str) -> str | None:
        """The driver of a claim; None where the claim is gone, since its trial was settled a moment ago."""
        try:
            model = self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        holder: str | None = model.tags.get(Tag.DRIVER)
        return holder

    @storing()
    def settle(self, trial: str) -> None:
        """Deletes all claims on a trial that has its result."""
        start = f"{PREFIX}.{self._experiment}.{trial}."
        for model in self._client.search_registered_models(f"name LIKE '{start}%'"):
            if model.name.startswith(start):
                try:
                    self._client.delete_registered_model(model.name)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                        raise
        self._mine.discard(trial)

    @storing()
    def close_stale(self) -> int:
        """Closes the runs that dead drivers left open as killed; returns how many."""
        # In this order: a driver shows itself before it opens a run.
        open_runs, living = self._store.running(), self.living()
        closed = 0
        for run in open_runs:
            driver = run.tag(Tag.DRIVER)
            gone = driver not in living if driver else dead(run.tag(Tag.OWNER))
            if gone:
                self._store.end(run.run_id, Status.KILLED)
                closed += 1
        for key, sign in self._client.get_experiment(self._experiment).tags.items():
            if key.startswith(DRIVER) and dead(json.loads(sign)["owner"]):
                self._client.delete_experiment_tag(self._experiment, key)
        return closed
