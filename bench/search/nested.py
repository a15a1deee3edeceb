"""Runs the trials of a search or an allocation, nested in the store under a run that holds its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Literal, Self

from tensorbench.execution.driver import execute, patiently
from tensorbench.execution.estimate import check_disk
from tensorbench.execution.executor import Executor
from tensorbench.execution.perform import Report
from tensorbench.execution.session import CLOSING, Session, within
from tensorbench.methods import Method
from tensorbench.plan.cells import PlanCell
from tensorbench.plan.rows import Plan, Row
from tensorbench.plan.trial import Trial
from tensorbench.records.record import Record, latest
from tensorbench.records.search_results import RESULT_FORMS, Finalist, RankResult
from tensorbench.records.words import Phase, RunKind, Status, Tag

#: A function of a plan, the number of its trials that run, and the number of slots. It returns a context that
#: shows the progress of the trials, and that yields the function to call with every event.
Watch = Callable[[Plan, int, int], AbstractContextManager[Report]]


class Nested:
    """The run of one cell's search or allocation in the store, which is the parent of its trials' runs.

    It is a context manager: entering opens the run, and leaving closes it. `retried` maps the id of each
    failed trial that is to run again to its failed run.
    """

    def __init__(
        self,
        cell: PlanCell,
        kind: Literal[RunKind.SEARCH, RunKind.ALLOCATION],
        driver: Session,
        executor: Executor,
        watch: Watch,
        retried: Mapping[str, str] = {},
    ) -> None:
        self.cell, self.kind, self.store = cell, kind, driver.store
        self.retried = retried
        self._driver, self._executor, self._watch = driver, executor, watch
        self.name = study_name(cell)
        self._result: RankResult | None = None

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
            # Raise the error even if the store fails. The next start closes runs that stay open.
            within(CLOSING, lambda: self._close(Status.KILLED))

    def _close(self, status: Literal[Status.FINISHED, Status.KILLED]) -> None:
        if self._result is not None:
            self.store.keep(self.run_id, RESULT_FORMS[self.kind][0], self._result)
        self.store.end(self.run_id, status)

    @property
    def driver(self) -> str:
        """The id of the driver that runs the trials."""
        return self._driver.claims.driver

    def living(self) -> set[str]:
        """Returns the ids of the drivers that still give signs of life, this driver included."""
        return patiently(self.store, self._driver.claims.living)

    def keep(self, result: RankResult) -> None:
        """Sets the result that is stored with this run, as `search.json` or `allocation.json`, at its end."""
        self._result = result

    def trials(
        self, methods: Sequence[Method], seeds: Sequence[int], phase: Phase | None, **options: Any
    ) -> tuple[list[Row], list[Trial]]:
        """Builds trials of the cell's method with other ranks, and a row for each of these `methods`.

        Trials are ordered by seed. They are scored on validation, or on the suite's split if `phase` is None.
        `options` are those of `PlanCell.trial`.
        """
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
    ) -> dict[str, Record]:
        """Runs the trials that are not settled. Returns the records of all settled trials, by trial id.

        The failed trials in `retried` run again.
        """
        plan = Plan(suite=self.cell.suite, rows=tuple(rows), trials=tuple(trials))
        records = latest(patiently(self.store, self.store.records))

        def has_result(trial: Trial) -> bool:
            record = records.get(trial.id)
            return record is not None and record.settled and record.run_id != self.retried.get(trial.id)

        self._driver.warn_of_changed_plugins(
            records[id_] for id_ in {trial.id for trial in trials if has_result(trial)}
        )
        pending = list({trial.id: trial for trial in trials if not has_result(trial)}.values())
        if pending:
            check_disk(plan, pending, self.store)
            with self._watch(plan, len(pending), self._executor.slots) as show:
                self._executor.prepare(pending, show, plan.suite.trial_timeout)
                execute(
                    plan,
                    pending,
                    self._driver,
                    self._executor,
                    show,
                    parent=self.run_id,
                    tags={Tag.PHASE: phase} if phase else {},
                    retried=self.retried,
                    records=records.values(),
                )
            records = latest(patiently(self.store, self.store.records))
        return {trial.id: records[trial.id] for trial in trials if has_result(trial)}

    def compare(self, methods: Mapping[str, Method], **options: Any) -> tuple[Finalist, ...]:
        """Runs these methods on the suite's seeds, and returns a result for each of them.

        `methods` maps the label of each result to the cell's method with other ranks. `options` are those of
        `PlanCell.trial`.
        """
        rows, trials = self.trials(list(methods.values()), self.cell.suite.seeds, None, **options)
        self.run(rows, trials, None)
        return tuple(Finalist(label=label, **tried(row)) for label, row in zip(methods, rows, strict=True))


def study_name(cell: PlanCell) -> str:
    """Returns the name of a cell's search or allocation. Labels in the suite do not change it."""
    # Stored searches are found by this name, which earlier versions gave them.
    budget = cell.budget.label if cell.budget else "own size"
    return " · ".join((cell.suite.name, cell.own.method, cell.own.task, cell.own.backbone, budget))


def about(cell: PlanCell) -> dict[str, Any]:
    """Returns the method, task, backbone and budget of a cell, as keyword arguments for `RankResult`."""
    return {**cell.shown._asdict(), "budget": cell.budget.label if cell.budget else None}


def tried(row: Row) -> dict[str, Any]:
    """Returns the ranks, number of parameters and trials of a row, as keyword arguments for `Tried`."""
    return {"ranks": row.ranks, "parameters": row.parameters, "trials": row.trials}
