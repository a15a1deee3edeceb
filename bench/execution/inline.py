"""Runs trials one after the other in this process; a failure is recorded and the others go on."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from bench.measure import provenance
from bench.plan import Plan, Trial
from bench.tasks import TASKS
from bench.tracking import Failure, Store, StoreError, TrialRun, latest
from bench.training import Diverged, Progress, Pruned
from bench.trial import Outcome, Resources, run_trial

#: How libraries say so in a RuntimeError: torch on a CPU, cuBLAS.
NO_MEMORY = ("can't allocate memory", "not enough memory", "ALLOC_FAILED")


@dataclass(frozen=True)
class Event:
    """What happens to a trial: it starts, makes progress, or ends."""

    trial: Trial
    kind: Literal["started", "progress", "finished", "failed", "pruned"]
    progress: Progress | None = None
    outcome: Outcome | None = None
    failure: str = ""


def pending(plan: Plan, store: Store, *, retry_failed: bool = False) -> list[Trial]:
    """The trials of the plan that have no result yet, in its order.

    A failed trial has one, its failure; with `retry_failed` exactly those are pending.
    """
    known = latest(store.records())
    if retry_failed:
        return [trial for trial in plan.trials if trial.id in known and known[trial.id].status == "FAILED"]
    return [trial for trial in plan.trials if trial.id not in known or not known[trial.id].settled]


def prepare_all(trials: list[Trial], resources: Resources) -> None:
    """Fetches and prepares what the trials need, so that what is missing shows before any training."""
    for trial in trials:
        resources.data(trial, resources.backbone(trial).info.input)


def execute(
    plan: Plan, trials: list[Trial], store: Store, resources: Resources, notify: Callable[[Event], None]
) -> None:
    """Runs the trials and stores each. An interrupt closes the running one as killed and goes up."""
    rows = {trial.id: [row for row in plan.rows if trial.id in row.trials.values()] for trial in trials}
    origin = provenance(str(resources.device))
    suite_run = store.begin_suite(plan)
    ended: Literal["FINISHED", "KILLED"] = "KILLED"
    try:
        for trial in trials:
            metric = TASKS.get(trial.task.task).metric
            run = store.begin_trial(trial, rows[trial.id], metric, suite_run, origin)
            notify(_run(trial, run, resources, notify))
        ended = "FINISHED"
    finally:
        store.end_suite(suite_run, ended)


def _run(trial: Trial, run: TrialRun, resources: Resources, notify: Callable[[Event], None]) -> Event:
    def report(progress: Progress) -> None:
        run.progress(progress)
        notify(Event(trial, "progress", progress))

    reason: Failure
    try:
        notify(Event(trial, "started"))
        outcome = run_trial(trial, resources, report)
        run.finish(outcome)
        return Event(trial, "finished", outcome=outcome)
    except Pruned:
        run.prune()
        return Event(trial, "pruned")
    except Diverged as error:
        reason, message, trace = "diverged", str(error), traceback.format_exc()
    except (torch.OutOfMemoryError, MemoryError) as error:
        reason, message, trace = "out of memory", str(error), traceback.format_exc()
    except StoreError:
        raise
    except Exception as error:  # a trial may fail in any way; the others must go on
        reason = "out of memory" if any(said in str(error) for said in NO_MEMORY) else "error"
        message, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
    except BaseException:
        run.kill()
        raise
    # Only now, when no traceback holds the tensors of the failed trial any more.
    gc.collect()
    if resources.device.type == "cuda":
        torch.cuda.empty_cache()
    run.fail(reason, message, trace)
    return Event(trial, "failed", failure=f"{reason}: {message}")
