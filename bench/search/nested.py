"""The trials of a search or an allocation: ordinary ones, nested under one run that holds the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Literal, Self

from bench.execution.driver import execute, patiently
from bench.execution.estimate import check_disk
from bench.execution.executor import Executor
from bench.execution.perform import Event, Report
from bench.execution.session import CLOSING, Session, within
from bench.plan.cells import Cell
from bench.plan.rows import Plan, Row
from bench.plan.trial import Trial
from bench.store.records import Record, latest
from bench.wire.found import FOUND, Finalist, Found
from bench.wire.words import OWN_SIZE, Kind, Phase, Status, Tag
from methods import Method

#: Shows how so many trials of a plan run on so many slots; what it gives hears of every event.
Watch = Callable[[Plan, int, int], AbstractContextManager[Report]]


class Nested:
    """The parent run of one cell's search or allocation, and the trials that are nested under it.

    It is entered before the first trial, which opens the run, and left after the last. `again` names, by
    trial id, the runs of failures that are to be tried again.
    """

    def __init__(
        self,
        cell: Cell,
        kind: Literal[Kind.SEARCH, Kind.ALLOCATION],
        at_work: Session,
        executor: Executor,
        watch: Watch,
        again: Mapping[str, str] = {},
    ) -> None:
        self.cell, self.kind, self.store = cell, kind, at_work.store
        self.again = again
        self._at_work, self._executor, self._watch = at_work, executor, watch
        self.name = study_name(cell)
        self._found: Found | None = None

    def __enter__(self) -> Self:
        name = f"{self.kind}: {self.name}"
        self.run_id = self.store.begin(self.kind, name, {Tag.STUDY: self.name}, self.driver)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._close(Status.FINISHED)
        else:
            # The error goes up, whatever the store says to this. The next start closes what stays open.
            within(CLOSING, lambda: self._close(Status.KILLED))

    def _close(self, status: Literal[Status.FINISHED, Status.KILLED]) -> None:
        if self._found is not None:
            self.store.keep(self.run_id, FOUND[self.kind][0], self._found)
        self.store.end(self.run_id, status)

    @property
    def driver(self) -> str:
        """The driver that runs the trials."""
        return self._at_work.claims.driver

    def living(self) -> set[str]:
        """The drivers that give signs of life, this one included."""
        return patiently(self.store, self._at_work.claims.living)

    def keep(self, found: Found) -> None:
        """Sets what the parent run will hold as `search.json` or `allocation.json` when it is left."""
        self._found = found

    def trials(
        self, methods: Sequence[Method], seeds: Sequence[int], phase: Phase | None, **options: Any
    ) -> tuple[list[Row], list[Trial]]:
        """Makes the trials of these sizes of the cell's method, seed by seed, and a row for each size."""
        evaluate = "validation" if phase else self.cell.suite.evaluate
        made = {
            (i, seed): self.cell.trial(seed, evaluate, method=method, **options)
            for seed in seeds
            for i, method in enumerate(methods)
        }
        rows = [
            self.cell.row({seed: made[i, seed].id for seed in seeds}, method=method, phase=phase)
            for i, method in enumerate(methods)
        ]
        return rows, list(made.values())

    def run(
        self,
        rows: Sequence[Row],
        trials: Sequence[Trial],
        phase: Phase | None,
        listen: Report | None = None,
    ) -> dict[str, Record]:
        """Runs those of the trials that have no result yet; returns the records of all of them, by trial id.

        A trial that a search pruned has no result: the rule of another search might have let it go on.
        `listen` hears of every event, and may raise Pruned on a progress.
        """
        plan = Plan(suite=self.cell.suite, rows=tuple(rows), trials=tuple(trials))
        known = latest(patiently(self.store, self.store.records))
        pruned = {id_: record.run_id for id_, record in known.items() if record.status == Status.PRUNED}
        again = {**self.again, **pruned}

        def has_result(trial: Trial) -> bool:
            """By what is known, which is read anew once they have run."""
            record = known.get(trial.id)
            return record is not None and record.settled and record.run_id != again.get(trial.id)

        self._at_work.warn_of_changed_plugins(
            known[id_] for id_ in {trial.id for trial in trials if has_result(trial)}
        )
        pending = list({trial.id: trial for trial in trials if not has_result(trial)}.values())
        if pending:
            check_disk(plan, pending, self.store)
            with self._watch(plan, len(pending), self._executor.slots) as show:
                self._executor.prepare(pending, show, plan.suite.trial_timeout)

                def notify(event: Event) -> None:
                    show(event)
                    if listen is not None:
                        listen(event)

                execute(
                    plan,
                    pending,
                    self._at_work,
                    self._executor,
                    notify,
                    parent=self.run_id,
                    tags={Tag.PHASE: phase} if phase else {},
                    again=again,
                )
            known = latest(patiently(self.store, self.store.records))
        return {trial.id: known[trial.id] for trial in trials if has_result(trial)}

    def compare(self, labelled: Mapping[str, Method], **options: Any) -> tuple[Finalist, ...]:
        """Runs these sizes on the suite's seeds, by which nothing was chosen: the `final` of the result."""
        rows, trials = self.trials(list(labelled.values()), self.cell.suite.seeds, None, **options)
        self.run(rows, trials, None)
        return tuple(Finalist(label=label, **tried(row)) for label, row in zip(labelled, rows, strict=True))


def study_name(cell: Cell) -> str:
    """What the search or the allocation of a cell is known by, whatever the suite's labels."""
    budget = cell.budget.label if cell.budget else OWN_SIZE
    return " · ".join((cell.suite.name, cell.own.method, cell.own.task, cell.own.backbone, budget))


def about(cell: Cell) -> dict[str, Any]:
    """The fields of `Found` that say which cell it is of."""
    return {
        **cell.shown._asdict(),
        "budget": cell.budget.label if cell.budget else None,
    }


def tried(row: Row) -> dict[str, Any]:
    """The fields of `Tried`, by a row whose trials are all known."""
    return {"ranks": row.ranks, "parameters": row.parameters, "trials": row.trials}
