"""Toy suites run through the program or the driver, and what they left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.execution.driver import execute, failures
from bench.execution.inline import Inline
from bench.execution.perform import Event
from bench.execution.session import session
from bench.plan.rows import Plan
from bench.plan.trial import Trial
from bench.records.record import Record
from bench.records.words import Artifact
from bench.store.store import Store

from .toy_suites import plan, write

#: Training that is over at once.
SHORT = {"batch_size": 16, "steps": 1}


@dataclass
class Ran:
    """A suite that ran, and where."""

    folder: Path
    suite: Path
    uri: str
    plan: Plan
    ended: Any = None

    @property
    def store(self) -> Store:
        return Store.existing(self.uri, "toy")

    def by_method(self, method: str, seed: int = 0) -> Record:
        """The first record of this trial."""
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
    """Runs a toy suite through the program."""
    suite, uri = write(folder, base, **changes), new_store(folder)
    return Ran(folder, suite, uri, plan(base, **changes), call("run", suite, "--store", uri))


def run_inline(store: Store, made: Plan, trials: Sequence[Trial] = ()) -> list[Event]:
    """Runs these trials of a plan, or all of them, in this process; failures again."""
    events: list[Event] = []
    retried = failures(store)
    with session(store) as at_work, Inline("cpu") as place:
        execute(made, list(trials or made.trials), at_work, place, events.append, retried=retried)
    return events


def executed(store: Store, made: Plan, trials: Sequence[Trial] = ()) -> list[Event]:
    """The same; how the trials ended."""
    return [event for event in run_inline(store, made, trials) if event.kind in ("finished", "failed")]


def raising(error: BaseException) -> Callable[..., Any]:
    """A function that raises this, whatever it is called with."""

    def raise_it(*_: Any, **__: Any) -> Any:
        raise error

    return raise_it
