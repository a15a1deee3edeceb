"""Forecasts how many trials a suite runs, and how long they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from tensorbench.execution.estimate import (
    Workload,
    pace_on,
    sizing,
    workload_of,
    workloads,
)
from tensorbench.machine.cards import cards
from tensorbench.machine.memory import MIB
from tensorbench.machine.precision import computes_bf16
from tensorbench.methods import UserError
from tensorbench.plan.make import cells_of
from tensorbench.plan.rows import Plan
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Forecast, Share
from tensorbench.store import DEFAULT_STORE

if TYPE_CHECKING:
    # Imported only if needed, since MLflow takes seconds.
    from tensorbench.records.record import Record
    from tensorbench.search.chooser import Batch
    from tensorbench.store.store import Store


@dataclass(frozen=True)
class _Job:
    trial: Trial
    workload: Workload
    #: Whether `trial` is the trial that would run. If that is not known yet, `trial` is a similar one.
    resolved: bool


@dataclass
class _Part:
    command: Literal["run", "search"]
    points: int = 0
    jobs: list[_Job] = field(default_factory=list)


def make_forecast(
    plan: Plan, store: str = DEFAULT_STORE, device: str = "cpu", notes: Sequence[str] = ()
) -> Forecast:
    """Estimates the trials and the time of a plan. Starts nothing.

    The trials of the suite's search, allocation or pilot are included. The time of a trial is estimated from
    stored trials with the same method, backbone, task and device. If there are none, it is proportional to
    the number of operations, at the speed of the suite's other stored trials there, or else of this machine.
    `notes` precede the forecast's own.
    """
    opened, faults = _opened(store, plan.suite.name)
    notes = [*notes, *faults]
    records: list[Record] = []
    settled: set[str] = set()
    if opened is not None:
        from tensorbench.records.record import latest
        from tensorbench.store.changes import changed_trials

        records = opened.records()
        notes += changed_trials(plan, opened, records)
        settled = {id_ for id_, record in latest(records).items() if record.settled}
    parts = [_run_part(plan)]
    if plan.suite.searched:
        parts.append(_search_part(plan, device, records, notes))
    parts = [part for part in parts if part.jobs]
    pace = pace_on(device, plan, records)
    if device.startswith("cuda") and not torch.cuda.is_available():
        notes.append(
            "This machine has no GPU. The plan is for one that computes bf16, and its times are those of "
            f"{'stored trials' if pace.stored else 'the processor here'}."
        )
    elif device.startswith("cuda"):
        notes.append(_gpus(device))
    open_ = {part.command: _open(part, settled) for part in parts}
    jobs = [job for part in parts for job in part.jobs]
    remaining = [(job.trial, job.workload) for open_jobs in open_.values() for job in open_jobs]
    return Forecast(
        parts=tuple(
            Share(
                command=part.command,
                points=part.points,
                trials=len(part.jobs),
                open=len(open_[part.command]),
                seconds=sum(pace.seconds(job.trial, job.workload) for job in open_[part.command]),
            )
            for part in parts
        ),
        based_on="stored trials" if pace.stored else "operations",
        notes=tuple(notes),
        advice=tuple(filter(None, (sizing(remaining, pace), _bf16([job.trial for job in jobs], device)))),
    )


def _gpus(device: str) -> str:
    """The GPUs of this machine, and the slots that a run would have on them."""
    card = torch.device(device)
    free, total = (size // MIB for size in torch.cuda.mem_get_info(card))
    count = 1 if ":" in device else len(cards())
    return (
        f"{count} GPU(s), {torch.cuda.get_device_name(card)}, with {total - free:,} of {total:,} MiB in use "
        "on the first. A run takes one slot there; --executor local takes one on each, and "
        "--slots-per-device auto as many as fit."
    )


def _opened(store: str, name: str) -> tuple[Store | None, list[str]]:
    if store.startswith("sqlite:///") and not Path(store.removeprefix("sqlite:///")).exists():
        return None, []
    from tensorbench.store.store import Store

    try:
        return Store.there(store, name), []
    except UserError as error:
        return None, [str(error)]


def _bf16(trials: list[Trial], device: str) -> str:
    if device != "cpu" or any(trial.recipe.precision == "bf16" for trial in trials):
        return ""
    if not computes_bf16():
        return ""
    return (
        "This processor computes bf16: 'training: {precision: bf16}' took .4 to .8 of the time where it was "
        "measured. Its trials have ids of their own, so decide before the first one runs."
    )


def _open(part: _Part, settled: set[str]) -> list[_Job]:
    return [job for job in part.jobs if not (job.resolved and job.trial.id in settled)]


def _run_part(plan: Plan) -> _Part:
    part = _Part("run")
    part.points = sum(len(row.trials) if row.studies else 1 for row in plan.rows)
    work = workloads(plan)
    part.jobs = [_Job(trial, work[trial.id], resolved=True) for trial in plan.trials]
    return part


def _search_part(plan: Plan, device: str, records: Sequence[Record], notes: list[str]) -> _Part:
    """The trials of the suite's search, allocation or pilot.

    It repeats the choosers' steps from the stored records. Trials that depend on results which are not there
    are counted as trials like the last one before them. Appends a note to `notes` if a chooser refuses the
    plan.
    """
    # Imported only if needed, since Optuna takes seconds.
    from tensorbench.search.chooser import run_steps
    from tensorbench.search.choosers import choosers_of

    part = _Part("search")
    try:
        choosers = choosers_of(plan.suite, cells_of(plan, device))
    except UserError as error:
        notes.append(str(error))
        return part

    def results(batch: Batch) -> list[Record] | None:
        trials = {trial.id: trial for trial in batch.trials}
        answer = [record for record in records if record.trial_id in trials]
        part.points += len(batch.rows)
        part.jobs += [
            _Job(trials[id_], workload_of(row), resolved=True)
            for row in batch.rows
            for id_ in row.trials.values()
            if id_ is not None
        ]
        if not batch.following or trials.keys() <= {record.trial_id for record in answer if record.settled}:
            return answer
        part.points += batch.following // len(batch.rows[-1].trials)
        part.jobs += batch.following * [replace(part.jobs[-1], resolved=False)]
        return None

    for chooser in choosers.values():
        run_steps(chooser, results)
    return part
