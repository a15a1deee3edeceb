"""The commands on a suite: `plan`, `run` and `search`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.commands.options import (
    DEFAULT_STORE,
    AsJson,
    Backbones,
    Budgets,
    Checkpointing,
    Device,
    ExecutorKind,
    LogFile,
    Methods,
    MicroBatch,
    RayAddress,
    ScoreSd,
    SearchWorkers,
    Seeds,
    ShrinkBatch,
    SlotsPerDevice,
    StoreUri,
    StudyNumbers,
    StudyStorage,
    SuiteFile,
    Tasks,
    Threshold,
    TrialTimeout,
    WorkerMemory,
    Workers,
    echo_json,
    err,
    one_for_each,
    out,
)

if TYPE_CHECKING:
    from bench.run import Audience


def run(
    suite: SuiteFile,
    store: StoreUri = DEFAULT_STORE,
    device: Device = "auto",
    task: Tasks = None,
    method: Methods = None,
    seed: Seeds = None,
    backbone: Backbones = None,
    budget: Budgets = None,
    studies: StudyNumbers = None,
    executor: ExecutorKind = "inline",
    workers: Workers = None,
    slots_per_device: SlotsPerDevice = None,
    ray_address: RayAddress = None,
    worker_memory: WorkerMemory = None,
    micro_batch: MicroBatch = None,
    checkpointing: Checkpointing = False,
    shrink_batch: ShrinkBatch = False,
    trial_timeout: TrialTimeout = None,
    log: LogFile = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run only the trials that failed.")
    ] = False,
) -> None:
    """Run a suite's trials into MLflow. Safe to stop and start again: finished trials are kept.

    Several starts on one store share the work.
    """
    from bench.execution.place import Place
    from bench.plan.rows import Part
    from bench.run import run_suite
    from bench.terminal.plans import print_tuning
    from bench.terminal.results import print_summary
    from bench.training.saving import Saving

    done = run_suite(
        suite,
        store=store,
        place=Place(
            executor=executor,
            device=device,
            workers=workers,
            slots_per_device=slots_per_device,
            ray_address=ray_address,
            worker_memory=worker_memory,
            trial_timeout=trial_timeout,
            saving=Saving(micro_batch, checkpointing, shrink_batch),
        ),
        part=Part(task or (), method or (), backbone or (), budget or (), seed or (), studies or ()),
        retry_failed=retry_failed,
        audience=_audience(log),
    )
    print_tuning(out, done.plan)
    print_summary(out, done.summary)
    if not done.complete:
        raise typer.Exit(1)


def search(
    suite: SuiteFile,
    store: StoreUri = DEFAULT_STORE,
    storage: StudyStorage = None,
    device: Device = "auto",
    trials: Annotated[int | None, typer.Option(min=1, help="Replaces search.trials.")] = None,
    sampler_seed: Annotated[int | None, typer.Option(help="Replaces search.seed.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="With a pilot: the file for the suite with what it chose.")
    ] = None,
    method: Methods = None,
    task: Tasks = None,
    backbone: Backbones = None,
    budget: Budgets = None,
    executor: ExecutorKind = "inline",
    workers: SearchWorkers = None,
    slots_per_device: SlotsPerDevice = None,
    ray_address: RayAddress = None,
    worker_memory: WorkerMemory = None,
    micro_batch: MicroBatch = None,
    checkpointing: Checkpointing = False,
    shrink_batch: ShrinkBatch = False,
    trial_timeout: TrialTimeout = None,
    log: LogFile = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Also try trials again that failed, and with them their points."),
    ] = False,
) -> None:
    """Search ranks within a budget, ablate its allocation, or choose rates and epochs for studies.

    The suite's section `search`, `allocation` or `pilot` says which. Safe to stop and start again.
    A search tries one point at a time; start the command several times to try more. An allocation's trials
    and the final runs use all workers.
    """
    from bench.execution.place import Place
    from bench.plan.rows import Part
    from bench.run import search_suite
    from bench.training.saving import Saving

    done = search_suite(
        suite,
        store=store,
        place=Place(
            executor=executor,
            device=device,
            workers=workers,
            slots_per_device=slots_per_device,
            ray_address=ray_address,
            worker_memory=worker_memory,
            trial_timeout=trial_timeout,
            saving=Saving(micro_batch, checkpointing, shrink_batch),
        ),
        part=Part(task or (), method or (), backbone or (), budget or ()),
        storage=storage,
        trials=trials,
        sampler_seed=sampler_seed,
        out=out,
        retry_failed=retry_failed,
        audience=_audience(log),
    )
    if not done.complete:
        raise typer.Exit(1)


def _audience(log: Path | None) -> Audience:
    """The terminal, and a log where one is asked for."""
    from bench.terminal.audience import Terminal

    terminal = Terminal(out, err)
    if log is None:
        return terminal
    from bench.log import Log

    return Log(log, terminal)


def plan(
    suite: SuiteFile,
    store: StoreUri = DEFAULT_STORE,
    device: Device = "auto",
    task: Tasks = None,
    method: Methods = None,
    seed: Seeds = None,
    backbone: Backbones = None,
    budget: Budgets = None,
    studies: StudyNumbers = None,
    power: Annotated[
        bool, typer.Option("--power", help="Also show the smallest differences that the suite could find.")
    ] = False,
    sd: ScoreSd = None,
    threshold: Threshold = None,
    micro_batch: MicroBatch = None,
    checkpointing: Checkpointing = False,
    as_json: AsJson = False,
) -> None:
    """Show what would run: resolved ranks and parameter counts; with --json trial ids too. Starts nothing.

    Also how many trials tuning, search and allocation are, and what all would take: by stored trials of the
    suite if the store has some, else by the operations.
    """
    from bench.execution import choose_device
    from bench.forecast import forecast
    from bench.plan.coverage import shared_points, tuning_notes
    from bench.plan.make import make_plan
    from bench.plan.rows import Part
    from bench.suite.load import load_suite
    from bench.terminal.plans import print_forecast, print_plan, print_power
    from bench.training.saving import Saving
    from methods import UserError

    if sd is not None and not power:
        raise UserError("--sd is of --power, which is not asked for")
    if threshold and not power:
        raise UserError("--threshold is of --power, which is not asked for")
    matters = one_for_each(threshold)
    device = choose_device(device)
    part = Part(task or (), method or (), backbone or (), budget or (), seed or (), studies or ())
    made = make_plan(load_suite(suite), device).select(part)
    expected = forecast(made, store, device, Saving(micro_batch, checkpointing))
    found = []
    if power:
        # Its import takes seconds, by what reads stored runs.
        from bench.power import power as suite_power

        found = suite_power(made, store, sd, matters)
    if as_json:
        told = made.stored().model_dump(mode="json") | {
            "tuning_points": [point.model_dump(exclude_none=True) for point in shared_points(made)],
            "tuning_warnings": tuning_notes(made),
            "forecast": expected.model_dump(mode="json"),
        }
        echo_json(told | ({"power": [one.as_dict() for one in found]} if power else {}))
        return
    print_plan(out, made)
    print_forecast(out, expected)
    if power:
        print_power(out, found)
