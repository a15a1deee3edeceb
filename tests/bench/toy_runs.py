"""Runs toy suites, through the program or through the driver alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorbench.execution.driver import execute, failures
from tensorbench.execution.inline import Inline
from tensorbench.execution.perform import Event
from tensorbench.execution.session import session
from tensorbench.plan.rows import Plan
from tensorbench.plan.trial import Trial
from tensorbench.records.record import Record
from tensorbench.records.words import Artifact
from tensorbench.store.store import Store

from .toy_suites import plan, write

#: The shortest possible training: one step.
SHORT = {"batch_size": 16, "steps": 1}


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


def run_inline(store: Store, made: Plan, trials: Sequence[Trial] = ()) -> list[Event]:
    """Runs trials of a plan in this process and returns all their events. Failed trials run again.

    By default all trials of the plan run.
    """
    events: list[Event] = []
    retried = failures(store.records())
    with session(store) as at_work, Inline("cpu") as place:
        execute(made, list(trials or made.trials), at_work, place, events.append, retried=retried)
    return events


def executed(store: Store, made: Plan, trials: Sequence[Trial] = ()) -> list[Event]:
    """Runs trials like `run_inline` and returns only the events of trials that finished or failed."""
    return [event for event in run_inline(store, made, trials) if event.kind in ("finished", "failed")]


def raising(error: BaseException) -> Callable[..., Any]:
    """Makes a function that takes any arguments and raises the error."""

    def raise_it(*_: Any, **__: Any) -> Any:
        raise error

    return raise_it
