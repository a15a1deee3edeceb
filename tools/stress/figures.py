"""Measures the time and memory of workers for docs/guides/clusters.md."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from tensorbench.execution.driver import execute
from tensorbench.execution.local import Local
from tensorbench.execution.perform import Event
from tensorbench.execution.session import session
from tensorbench.execution.worker import Slot
from tensorbench.plan.make import make_plan
from tensorbench.plan.rows import Plan
from tensorbench.plan.suite import load_suite
from tensorbench.store.store import Store

from .scenarios import Report, sqlite, write_suite


def _timed(plan: Plan, store: Store, place: Local) -> float:
    """Seconds from the first start of a trial to the last end."""
    marks: list[float] = []

    def note(event: Event) -> None:
        if event.kind in ("started", "finished"):
            marks.append(time.monotonic())
        assert event.kind in ("started", "progress", "finished"), event

    with session(store) as at_work:
        execute(plan, list(plan.trials), at_work, place, note)
    return marks[-1] - marks[0]


def throughput(folder: Path, trials: int = 12, rounds: int = 3, steps: int = 150) -> Report:
    """Compares the time of two workers with the time of one worker, in alternating rounds.

    Each worker has one thread and is warm.
    """
    ratios, times = [], []
    places = {count: Local([Slot(f"cpu/{i}", "cpu", 1) for i in range(count)]) for count in (1, 2)}
    tasks = [{"task": "digits", "train_size": 600, "validation_size": 100, "test_size": 100}]
    training = {"lr": 1e-3, "batch_size": 64, "steps": steps}
    with places[1], places[2]:
        for number in range(rounds + 1):
            seconds = {}
            for count, place in places.items():
                where = folder / f"{number}-{count}"
                where.mkdir()
                # The first round only warms up.
                size = trials if number else 2 * count
                suite = write_suite(
                    where, size, tasks=tasks, training=training, methods=["lora", "head_only"]
                )
                plan = make_plan(load_suite(suite))
                place.prepare(list(plan.trials))
                seconds[count] = _timed(plan, Store.create(sqlite(where), "stress"), place)
            if number:
                times.append(seconds)
                ratios.append(seconds[1] / seconds[2])
    return {"trials a round": trials, "seconds": times, "ratios": ratios, "median": statistics.median(ratios)}


def memory(folder: Path, trials: int = 500, warm: int = 50) -> Report:
    """Measures the resident memory of one worker after its first trials and after its last."""
    seeds = list(range(trials // 4))
    methods = ["head_only", "lora", "lotr", {"method": "tenslora", "variant": "att"}]
    suite = write_suite(folder, trials, steps=8, seeds=seeds, methods=methods)
    plan, store = make_plan(load_suite(suite)), Store.create(sqlite(folder), "stress")
    sizes: list[float] = []
    place = Local([Slot("cpu/0", "cpu", 1)])

    def note(event: Event) -> None:
        if event.kind == "finished":
            sizes.append(place.processes()[0].memory_info().rss / 2**20)

    began = time.monotonic()
    with place, session(store) as at_work:
        place.prepare(list(plan.trials))
        execute(plan, list(plan.trials), at_work, place, note)
    first = statistics.median(sizes[warm - 10 : warm])
    last = statistics.median(sizes[-10:])
    return {
        "trials": len(sizes),
        f"MiB after {warm}": round(first, 1),
        "MiB at the end": round(last, 1),
        "growth": last / first - 1,
        "seconds": round(time.monotonic() - began),
    }
