"""Drivers for tests of a store: alive, dead or on another machine."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Literal

from tensorbench.machine.alive import owner
from tensorbench.records.record import Record, failed
from tensorbench.records.words import Status, Tag
from tensorbench.store.claims import SIGN, Claims
from tensorbench.store.store import Store

from ...stored import begun
from ..toy_suites import plan

ELSEWHERE = "elsewhere:1:0"


def opened(store: Store, who: str | None = None) -> Claims:
    """A driver that has given one sign of life and will give no further one.

    The sign names `who` as its owner, by default this process.
    """
    made = Claims(Store.existing(store.uri, "toy"))
    made.beat()
    if who:
        sign = json.dumps({"owner": who, "beat": 1})
        store.client.set_experiment_tag(store.experiment.experiment_id, SIGN + made.driver, sign)
    return made


def take(driver: Claims, trial: str = "t") -> bool:
    taken = driver.taken()
    return driver.take(trial, taken, driver.living())


def dead_owner() -> str:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    place, *_ = owner().split(":")
    return f"{place}:{gone.pid}:0"


def names(store: Store) -> list[str]:
    return [model.name for model in store.client.search_registered_models()]


def stored(store: Store, status: Literal["finished", "failed"], driver: str = "") -> str:
    """Stores a trial that finished or failed, and returns its id."""
    made = plan(methods=["head_only"], training={"batch_size": 16, "steps": 1})
    (trial,) = made.trials
    run = begun(store, trial, made.rows, tags={Tag.DRIVER: driver})
    run.end(
        Record(status=Status.FINISHED, metrics={"score": 1.0})
        if status == "finished"
        else failed("error", "it broke", "")
    )
    return trial.id


def signs(store: Store) -> list[str]:
    tags = store.client.get_experiment(store.experiment_id).tags
    return [tag.removeprefix(SIGN) for tag in tags if tag.startswith(SIGN)]
