"""What a run needs of disk and memory, at least, asked before it starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from bench.backbones import describe
from bench.execution.estimate import encoder_weights
from bench.plan.rows import Plan
from bench.plan.trial import Trial
from bench.process.memory import MIB, available_mib
from bench.sources.assets import cache_dir
from methods import UserError

if TYPE_CHECKING:
    # Its import takes seconds, and a plan without a store needs none of it.
    from bench.store.store import Store

#: A trial's record without its weights: predictions, configuration, metrics.
RECORD_MIB = 1
#: Left for everything else.
SPARE_MIB = 200
#: A process with torch and the libraries loaded.
PROCESS_MIB = 400


def check_disk(plan: Plan, trials: list[Trial], store: Store) -> None:
    """Raises UserError where results would not fit, in the store if it is a file and in the outbox."""
    wanted = {trial.id for trial in trials}
    parameters = {id_: row.parameters for row in plan.rows for id_ in row.trials.values() if id_ in wanted}
    sizes = list(map(record_mib, parameters.values()))
    needs = {cache_dir(): SPARE_MIB, store.outbox: SPARE_MIB + max(sizes, default=0)}
    if store.local:
        needs[store.outbox] += sum(sizes)
    for folder, mib in needs.items():
        free = shutil.disk_usage(_existing(folder)).free / MIB
        if free < mib:
            raise UserError(
                f"{_existing(folder)} has {free:,.0f} MiB free, and {len(trials)} trial(s) need {mib:,.0f} "
                "there; free some space, or name another store or TENSORBENCH_CACHE"
            )


def record_mib(parameters: int) -> float:
    """What the record of a trial with so many adapter parameters takes, in MiB."""
    return RECORD_MIB + 4 * parameters / MIB


def check_memory(trials: list[Trial], workers: int) -> None:
    """Raises UserError where not even the weights fit on this machine."""
    workers = min(workers, len(trials))
    needed, there = workers * worker_mib(trials), available_mib()
    if needed > there:
        raise UserError(
            f"{workers} worker(s) need at least {needed:,.0f} MiB of memory, and {there:,.0f} MiB are free; "
            "take fewer --workers"
        )


def worker_mib(trials: list[Trial]) -> float:
    """What a worker needs at least, in MiB: it holds one backbone at a time."""
    specs = {trial.backbone for trial in trials}
    return PROCESS_MIB + max(4 * encoder_weights(describe(spec).geometry) for spec in specs) / MIB


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)
