"""Trials of a search or an ablation: ordinary ones, nested under one parent run that holds the result."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Literal, Self

from bench.execution.checks import check_disk
from bench.execution.driver import execute
from bench.execution.executor import Executor
from bench.execution.perform import Event
from bench.execution.session import CLOSING, Session, within
from bench.plan.cells import Cell
from bench.plan.rows import Phase, Plan, Row
from bench.plan.trial import Trial
from bench.process.alive import owner
from bench.store.connect import storing
from bench.store.records import Record, latest
from methods import Method

Listener = Callable[[Event], None]
#: Shows so many trials of a plan at work.
Watch = Callable[[Plan, int], AbstractContextManager[Listener]]
Kind = Literal["search", "allocation"]


class Nested:
    """The parent run of one cell's search or ablation, and the trials under it. Entered before the first.

    `again` has the runs of the failures, by trial id, that are tried again, once.
    """

    def __init__(
        self,
        cell: Cell,
        kind: Kind,
        at_work: Session,
        executor: Executor,
        watch: Watch,
        again: Mapping[str, str] = {},
    ) -> None:
        self.cell, self.kind, self.store = cell, kind, at_work.store
        self.again = again
        self._at_work, self._executor, self._watch = at_work, executor, watch
        budget = cell.budget.label if cell.budget else "own size"
        self.name = " · ".join((cell.suite.name, cell.label, cell.task.task, cell.info.name, budget))
        self._artifacts: dict[str, Any] = {}

    @storing()
    def __enter__(self) -> Self:
        client = self.store.client
        mine = {"owner": owner(), "driver": self._at_work.claims.driver}
        found = [run for run in self.store._search(self.kind) if run.data.tags.get("study") == self.name]
        if found:
            self.run_id: str = found[-1].info.run_id
            client.update_run(self.run_id, status="RUNNING")
            for key, value in mine.items():
                client.set_tag(self.run_id, key, value)
        else:
            self.run_id = client.create_run(
                self.store.experiment.experiment_id,
                tags={"kind": self.kind, "study": self.name, **mine},
                run_name=f"{self.kind}: {self.name}",
            ).info.run_id
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._close("FINISHED")
        else:
            # Whatever the store says to it, the error goes up; the next start closes what stays open.
            within(CLOSING, lambda: self._close("KILLED"))

    @storing()
    def _close(self, status: Literal["FINISHED", "KILLED"]) -> None:
        for name, content in self._artifacts.items():
            self.store.client.log_text(self.run_id, json.dumps(content, indent=1), name)
        self.store.client.set_terminated(self.run_id, status)

    def keep(self, content: dict[str, Any]) -> dict[str, Any]:
        """What the parent run will hold as `search.json` or `allocation.json`."""
        self._artifacts[f"{self.kind}.json"] = content
        return content

    def trials(
        self, methods: Sequence[Method], seeds: Sequence[int], phase: Phase | None, **options: Any
    ) -> tuple[list[Row], list[Trial]]:
        """The trials of these sizes of the cell's method, seed by seed, and their rows."""
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
        listen: Listener | None = None,
    ) -> dict[str, Record]:
        """The records of the trials, by id; those that have no result yet run first.

        What a search gave up early is no result, not for another search either, whose rule may be another.
        `listen` hears of every event, and may raise Pruned on a progress.
        """
        plan = Plan(suite=self.cell.suite, rows=tuple(rows), trials=tuple(trials))
        known = latest(self.store.records())
        pruned = {id_: record.run_id for id_, record in known.items() if record.status == "PRUNED"}
        again = {**self.again, **pruned}

        def has_result(trial: Trial) -> bool:
            record = known.get(trial.id)
            return record is not None and record.settled and record.run_id != again.get(trial.id)

        pending = list({trial.id: trial for trial in trials if not has_result(trial)}.values())
        if pending:
            check_disk(plan, pending, self.store)
            self._executor.prepare(pending)
            with self._watch(plan, len(pending)) as show:

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
                    tags={"phase": phase} if phase else {},
                    again=again,
                )
            known = latest(self.store.records())
        return {trial.id: known[trial.id] for trial in trials if trial.id in known}

    def compare(self, labelled: Mapping[str, Method], **options: Any) -> list[dict[str, Any]]:
        """Runs these sizes on the suite's seeds, which chose nothing: the `final` of the artifact."""
        rows, trials = self.trials(list(labelled.values()), self.cell.suite.seeds, None, **options)
        self.run(rows, trials, None)
        return [
            {"label": label, "ranks": list(row.ranks), "parameters": row.parameters, "trials": row.trials}
            for label, row in zip(labelled, rows, strict=True)
        ]
