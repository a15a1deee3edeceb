"""Forecasts how many trials a suite runs, and how long they take."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from tensorbench.execution.estimate import Workload, pace_on, sizing, workload_of, workloads
from tensorbench.machine.cards import cards
from tensorbench.machine.memory import MIB
from tensorbench.machine.precision import computes_bf16
from tensorbench.methods import UserError
from tensorbench.plan.rows import Plan
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Forecast, Share
from tensorbench.records.words import Tag
from tensorbench.run.search.chooser import Batch
from tensorbench.run.search.ranks import choosers_of
from tensorbench.store import DEFAULT_STORE
from tensorbench.store.opening import is_pack, lacks_file
from tensorbench.store.pack.reading import open_pack

if TYPE_CHECKING:
    # Imported only if needed, since MLflow takes seconds.
    from tensorbench.records.record import Record


@dataclass
class _Part:
    """The trials that one command would start."""

    command: Literal["run", "search"]
    points: int = 0
    trials: int = 0
    references: int = 0
    reruns: int = 0
    #: The trials without a stored result. A trial that depends on results to come is represented by a copy of
    #: the last trial before it.
    open: list[tuple[Trial, Workload]] = field(default_factory=list)


def make_forecast(
    plan: Plan,
    store: str = DEFAULT_STORE,
    device: str = "cpu",
    notes: Sequence[str] = (),
    full_plan: Plan | None = None,
) -> Forecast:
    """Estimates the trials and the time of a plan. Starts nothing.

    The trials of the suite's search or pilot are included. The time of a trial is estimated from stored
    trials with the same method, backbone, task and device. If there are none, it is the number of operations
    divided by the speed of the suite's other stored trials on this device. If there are none of these either,
    the speed of this machine is used. `notes` precede the forecast's own notes. `plan` is a part of
    `full_plan`, if that is given.
    """
    notes, readable, full_plan = [*notes], not lacks_file(store), full_plan or plan
    records: list[Record] = []
    if readable and not is_pack(store):
        from tensorbench.store.changes import changed_trials
        from tensorbench.store.store import Store

        try:
            opened = Store.there(store, plan.suite.name)
        except UserError as error:
            notes.append(str(error))
            opened, readable = None, False
        if opened is not None:
            records = opened.records()
            notes += changed_trials(full_plan, plan, opened, records)
    settled = {record.trial_id for record in records if record.settled}
    lacking = {trial.id for trial in plan.trials} - settled
    references: dict[str, Record] = {}
    reruns: Set[str] = set()
    if readable:
        from tensorbench.run.references import adds_trials, find_references, references_of, to_run_again

        if is_pack(store):
            held = [run for source in open_pack(Path(store)) for run in source.records()]
            # Count the pack's runs as if they were unpacked.
            records += [replace(run, tags={**run.tags, Tag.ORIGIN: run.origin}) for run in held]
        else:
            records += [run for _, run in find_references(store, plan.suite.name, lacking).values()]
        references = references_of(plan, records)
        if adds_trials(full_plan, plan, records):
            reruns = to_run_again(full_plan, plan, records).keys()
    settled |= references.keys()
    waiting, work = (lacking - settled) | reruns, workloads(full_plan)
    points = sum(len(row.trials) if row.studies else 1 for row in plan.rows)
    to_run = [(trial, work[trial.id]) for trial in full_plan.trials if trial.id in waiting]
    parts = [_Part("run", points, len(plan.trials), len(references), len(reruns), to_run)]
    if plan.suite.searched:
        parts.append(_search_part(plan, records, settled, notes))
    pace = pace_on(device, plan, records)
    if device.startswith("cuda") and not torch.cuda.is_available():
        notes.append(
            "This machine has no GPU. The plan is for one that computes bf16, and its times are those of "
            f"{'stored trials' if pace.stored else 'the processor here'}."
        )
    elif device.startswith("cuda"):
        notes.append(_gpus(device))
    if full_plan.sequential and (tuning := full_plan.suite.tuning) and tuning.looks:
        first = tuning.looks.after[0] * tuning.points
        notes.append(
            f"Sequential: {len(plan.trials):,} trials at most. Methods stop at their verdict, after "
            f"{first} trials at the earliest; `plan --power` simulates how many to expect."
        )
    remaining = [job for part in parts for job in part.open]
    return Forecast(
        parts=tuple(
            Share(**vars(part) | {"open": len(part.open), "seconds": sum(starmap(pace.seconds, part.open))})
            for part in parts
            if part.trials
        ),
        based_on="stored trials" if pace.stored else "operations",
        notes=tuple(notes),
        advice=tuple(filter(None, (sizing(remaining, pace), _bf16(plan.trials, device)))),
    )


def _gpus(device: str) -> str:
    """The GPUs of this machine, and the slots that a run would have on them."""
    card = torch.device(device)
    free, total = (size // MIB for size in torch.cuda.mem_get_info(card))
    count = 1 if ":" in device else len(cards())
    first = " on the first" * (count > 1)
    return (
        f"{count} GPU(s), {torch.cuda.get_device_name(card)}, with {total - free:,} of {total:,} MiB in use"
        f"{first}. A run takes one slot there; --executor local takes one on each, and "
        "--slots-per-device auto as many as fit."
    )


def _bf16(trials: Sequence[Trial], device: str) -> str:
    if device != "cpu" or any(trial.recipe.precision == "bf16" for trial in trials) or not computes_bf16():
        return ""
    return (
        "This processor computes bf16: 'training: {precision: bf16}' took .4 to .8 of the time where it was "
        "measured. Its trials have ids of their own, so decide before the first one runs."
    )


def _search_part(plan: Plan, records: Sequence[Record], settled: Set[str], notes: list[str]) -> _Part:
    """Returns the trials of the suite's search or pilot, by repeating its steps from the stored records.

    Trials that depend on missing results are counted, each like the last trial before them. `settled` has the
    ids of trials with a result. Appends a note to `notes` if a chooser refuses the plan.
    """
    part = _Part("search")

    def results(batch: Batch) -> list[Record]:
        work = {id_: workload_of(row) for row in batch.rows for id_ in row.trials.values()}
        trials = {trial.id: (trial, work[trial.id]) for trial in batch.trials}
        part.points += len(batch.rows)
        part.trials += len(trials)
        part.open += [job for id_, job in trials.items() if id_ not in settled]
        if batch.following and not trials.keys() <= settled:
            part.points += batch.following // len(batch.rows[-1].trials)
            part.trials += batch.following
            part.open += batch.following * [list(trials.values())[-1]]
        return [record for record in records if record.trial_id in trials]

    try:
        choosers = choosers_of(plan)
    except UserError as error:
        notes.append(str(error))
        return part
    for chooser in choosers.values():
        chooser.run(results)
    return part
