"""Forecasts how many trials a suite runs, and how long they take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from tensorbench.execution.estimate import (
    Workload,
    pace_on,
    sizing,
    workload_of,
)
from tensorbench.machine.cards import cards
from tensorbench.machine.memory import MIB
from tensorbench.machine.precision import computes_bf16
from tensorbench.methods import Method, UserError
from tensorbench.plan.cells import PlanCell
from tensorbench.plan.choosing import ChoosingSection, Pilot
from tensorbench.plan.make import cells_of
from tensorbench.plan.rows import Plan, Row
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Forecast, Share
from tensorbench.records.words import Phase
from tensorbench.store import DEFAULT_STORE

if TYPE_CHECKING:
    # Imported only if needed, since MLflow and Optuna take seconds.
    from tensorbench.records.record import Record
    from tensorbench.store.store import Store


@dataclass(frozen=True)
class _Job:
    trial: Trial
    workload: Workload
    #: Whether `trial` is the trial that would run. If that is not known yet, `trial` is a similar one.
    resolved: bool


@dataclass
class _Part:
    name: Phase | Literal["final"]
    command: Literal["run", "search"]
    points: int = 0
    jobs: list[_Job] = field(default_factory=list)


def make_forecast(plan: Plan, store: str = DEFAULT_STORE, device: str = "cpu") -> Forecast:
    """Estimates the trials and the time of a plan. Starts nothing.

    The trials of the suite's search, allocation or pilot are included. The time of a trial is estimated from
    stored trials with the same method, backbone, task and device. If there are none, it is proportional to
    the number of operations, at the speed of the suite's other stored trials there, or else of this machine.
    """
    opened, notes = _opened(store, plan.suite.name)
    records: list[Record] = []
    settled: set[str] = set()
    if opened is not None:
        from tensorbench.records.record import latest
        from tensorbench.search.tuning import with_choices
        from tensorbench.store.changes import changed_trials

        records = opened.records()
        plan = with_choices(plan, opened, records)
        notes += changed_trials(plan, opened, records)
        settled = {id_ for id_, record in latest(records).items() if record.settled}
    parts = _run_parts(plan)
    if plan.suite.searched:
        parts += _search_parts(plan, device, notes)
    parts = [part for part in parts if part.jobs]
    pace = pace_on(device, plan, records)
    if device.startswith("cuda") and not torch.cuda.is_available():
        notes.append(
            "This machine has no GPU. The plan is for one that computes bf16, and its times are those of "
            f"{'stored trials' if pace.stored else 'the processor here'}."
        )
    elif device.startswith("cuda"):
        notes.append(_gpus(device))
    open_ = {part.name: _open(part, settled) for part in parts}
    jobs = [job for part in parts for job in part.jobs]
    remaining = [(job.trial, job.workload) for open_jobs in open_.values() for job in open_jobs]
    return Forecast(
        parts=tuple(
            Share(
                part=part.name,
                command=part.command,
                points=part.points,
                trials=len(part.jobs),
                open=len(open_[part.name]),
                seconds=sum(pace.seconds(job.trial, job.workload) for job in open_[part.name]),
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


def _run_parts(plan: Plan) -> list[_Part]:
    final, tuning = _Part("final", "run"), _Part("tuning", "run")
    trials = {trial.id: trial for trial in plan.trials}
    seen: set[str] = set()
    for row in plan.rows:
        part = tuning if row.phase else final
        part.points += len(row.trials) if row.studies else 1
        for seed, id_ in row.trials.items():
            # Before tuning has chosen, any candidate's trial represents the final one.
            trial = trials[id_] if id_ else row.candidates[0].final[seed]
            if trial.id not in seen:
                part.jobs.append(_Job(trial, workload_of(row), resolved=id_ is not None))
            if id_:
                seen.add(id_)
    return [tuning, final]


def _search_parts(plan: Plan, device: str, notes: list[str]) -> list[_Part]:
    """The trials of the suite's search, allocation or pilot.

    Appends a note to `notes` for each method that the search or the allocation refuses, and for a pilot that
    does not fit the plan.
    """
    import optuna

    from tensorbench.search.allocation import RankAllocation
    from tensorbench.search.study import RankSearch

    # Optuna would announce these studies, although they never run.
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    suite = plan.suite
    if suite.pilot is not None:
        try:
            return [_pilot_part(suite.pilot, cells_of(plan, device))]
        except UserError as error:
            notes.append(str(error))
            return []
    search, allocation = _Part("search", "search"), _Part("allocation", "search")

    def selection(section: ChoosingSection, cell: PlanCell, method: Method) -> list[Trial]:
        return [cell.trial(s, "validation", method=method, epochs=section.epochs) for s in section.seeds]

    def add(part: _Part, cell: PlanCell, points: int, trials: list[Trial], *, resolved: bool) -> None:
        part.points += points
        part.jobs += _jobs(cell, trials, resolved=resolved)
        # The best point (not known yet) and the heuristic's are compared on the suite's seeds.
        final = [cell.trial(seed, suite.evaluate) for seed in suite.seeds]
        part.jobs += [*_jobs(cell, final, resolved=True), *_jobs(cell, final)]

    for cell in cells_of(plan, device):
        if suite.search:
            storage = optuna.storages.InMemoryStorage()
            try:
                points = RankSearch(cell, suite.search, storage, cell.shown.method).trials
            except UserError as error:
                notes.append(f"search: {error}")
            else:
                trials = points * selection(suite.search, cell, cell.method)
                add(search, cell, points, trials, resolved=False)
        if suite.allocation:
            try:
                vectors = RankAllocation(cell, suite.allocation).vectors
            except UserError as error:
                notes.append(f"allocation: {error}")
            else:
                sizes = map(cell.method.with_size, vectors)
                trials = [trial for size in sizes for trial in selection(suite.allocation, cell, size)]
                add(allocation, cell, len(vectors), trials, resolved=True)
    return [search, allocation]


def _pilot_part(pilot: Pilot, cells: list[PlanCell]) -> _Part:
    # Assumes that the first steps of the pilot choose the suite's own values.
    # Imported late, since it takes seconds.
    from tensorbench.search.pilot import check_pilot, run_pilot

    check_pilot(pilot, cells)
    part = _Part("search", "search")

    def count(rows: Sequence[Row], trials: Sequence[Trial]) -> dict[str, Record]:
        by_id = {trial.id: trial for trial in trials}
        part.points += len(rows)
        part.jobs += [
            _Job(by_id[id_], workload_of(row), resolved=True)
            for row in rows
            for id_ in row.trials.values()
            if id_ is not None
        ]
        return {}

    run_pilot(pilot, cells, count)
    return part


def _jobs(cell: PlanCell, trials: list[Trial], *, resolved: bool = False) -> Iterator[_Job]:
    row = cell.row({})
    for trial in trials:
        yield _Job(trial, workload_of(row), resolved)
