"""Runs toy suites, through the program or through the driver alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tensorbench.execution.inline
from tensorbench.execution.driver import execute, failures
from tensorbench.execution.executor import Executor
from tensorbench.execution.inline import Inline
from tensorbench.execution.perform import Event
from tensorbench.execution.session import session
from tensorbench.plan.rows import Plan
from tensorbench.plan.trial import Trial
from tensorbench.records.record import Record
from tensorbench.records.stored_plan import Row
from tensorbench.records.words import Artifact, Status
from tensorbench.store.store import Store

from .toy_suites import plan, write

if TYPE_CHECKING:
    # Programs that crash on purpose import this module, and need no pytest.
    import pytest

#: The shortest possible training: one step.
SHORT = {"batch_size": 16, "steps": 1}
#: A training that is so long that no test waits for its end.
LONG = {"batch_size": 16, "steps": 10**7}


@dataclass
class Ran:
    """A suite that has run, and where its results are."""

    folder: Path
    #: The suite's file.
    suite: Path
    #: The address of the store.
    uri: str
    plan: Plan
    #: The exit code and the output of the program.
    ended: Any = None

    @property
    def store(self) -> Store:
        return Store.existing(self.uri, "toy")

    def by_method(self, method: str, seed: int = 0) -> Record:
        """The first record with this method and seed."""
        return next(
            record
            for record in self.store.records()
            if record.tags["method"] == method and record.tags["seed"] == str(seed)
        )

    def artifact(self, record: Record, name: str) -> Path:
        path = self.store.artifact(record, Artifact(name))
        assert path is not None
        return path


def run(
    folder: Path,
    new_store: Callable[[Path], str],
    call: Callable[..., Any],
    base: dict[str, Any],
    **changes: Any,
) -> Ran:
    """Runs a toy suite through the program. `changes` replace fields of the suite `base`."""
    suite, uri = write(folder, base, **changes), new_store(folder)
    return Ran(folder, suite, uri, plan(base, **changes), call("run", suite, "--store", uri))


def run_on(
    place: Executor,
    store: Store,
    made: Plan,
    trials: Sequence[Trial] = (),
    notify: Callable[[Event], None] = lambda event: None,
    **options: Any,
) -> list[Event]:
    """Runs trials of a plan on an executor and returns all their events. By default all trials run."""
    events: list[Event] = []

    def note(event: Event) -> None:
        events.append(event)
        notify(event)

    with session(store) as at_work:
        execute(made, list(trials or made.trials), at_work, place, note, **options)
    return events


def run_inline(store: Store, made: Plan, trials: Sequence[Trial] = (), **options: Any) -> list[Event]:
    """Runs trials of a plan in this process, as `run_on` does. By default failed trials run again."""
    options.setdefault("retried", failures(store.records()))
    with Inline("cpu") as place:
        return run_on(place, store, made, trials, **options)


def executed(store: Store, made: Plan, trials: Sequence[Trial] = ()) -> list[Event]:
    """Runs trials like `run_inline` and returns only the events of trials that finished or failed."""
    return [event for event in run_inline(store, made, trials) if event.kind in ("finished", "failed")]


def timed(row: Row, seconds: float, tags: Mapping[str, str] = {}) -> Record:
    """The record of a finished trial of a row, whose ten steps took this time."""
    own = {"method": row.method, "backbone": row.backbone, "task": row.task}
    metrics = {"cost/seconds": seconds, "cost/steps": 10.0}
    return Record(row.method, "other", Status.FINISHED, tags={**own, **tags}, metrics=metrics)


def forbid_trials(patch: pytest.MonkeyPatch) -> None:
    """Makes an error of every preparation and every trial in this process."""
    for name in ("prepare_all", "report_trial"):
        patch.setattr(tensorbench.execution.inline, name, raising(AssertionError(name)))


def raising(error: BaseException) -> Callable[..., Any]:
    """Makes a function that takes any arguments and raises the error."""

    def raise_it(*_: Any, **__: Any) -> Any:
        raise error

    return raise_it
