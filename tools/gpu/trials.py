"""Measures how many trials per hour a GPU runs with the workers of `--executor local`."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tensorbench.execution.local import Local
from tensorbench.execution.perform import Event
from tensorbench.execution.worker import Slot
from tensorbench.machine.memory import MIB
from tensorbench.methods.validation import validate
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import Suite
from tensorbench.plan.trial import Trial
from tensorbench.records.words import Status

from . import tables
from .runner import Row
from .toys import own_cache

#: The first seed of warm-up trials. No other trial has a seed as large.
WARMUP_SEED = 10_000


def an_hour(
    device: str, backbones: Sequence[str], slots: Sequence[int], each: int, steps: int, batch: int
) -> Iterator[Row]:
    """Yields the trials per hour for each backbone and each number of busy slots.

    All workers are warm. Each measurement runs `each` trials, or twice the number of slots if that is more.
    """
    with own_cache() as folder, _workers(device, max(slots)) as workers:
        for backbone in backbones:
            length = {"steps": steps, "batch_size": batch}
            warmup = trials(device, backbone, folder, range(WARMUP_SEED, WARMUP_SEED + max(slots)), **length)
            workers.prepare(list(warmup))
            run(warmup, workers, max(slots))
            alone: float | None = None
            for count in slots:
                chosen = trials(device, backbone, folder, range(max(each, 2 * count)), **length)
                before = _in_use(device)
                began = time.perf_counter()
                failed = run(chosen, workers, count)
                took = time.perf_counter() - began
                rate = 3600 * (len(chosen) - failed) / took
                alone = rate if alone is None else alone
                yield {
                    "table": tables.TRIALS,
                    "backbone": backbone,
                    "slots": count,
                    "trials": len(chosen),
                    "failed": failed,
                    "seconds": took,
                    "trials an hour": rate,
                    "of one slot": rate / alone if alone else None,
                    "MiB in use": max(before, _in_use(device)) or None,
                }


def _in_use(device: str) -> float:
    """The memory of the GPU in use, with what CUDA and torch reserve in each process, in MiB. 0 for a CPU."""
    if not device.startswith("cuda"):
        return 0.0
    free, total = torch.cuda.mem_get_info(torch.device(device))
    return (total - free) / MIB


def trials(device: str, backbone: str, folder: Path, seeds: Sequence[int], **training: Any) -> list[Trial]:
    """Trials that differ only in their seed.

    Their task is digits or, for backbones that read text, random sentences that are written into `folder`.
    """
    fields: dict[str, Any] = {
        "name": "card",
        "backbones": [backbone],
        "tasks": [sentences(folder) if _reads_texts(backbone) else _digits()],
        "methods": [{"method": "tenslora", "variant": "qkv_depth"}],
        "budgets": [{"isorank": 4}],
        "seeds": list(seeds),
        "training": {"lr": 5e-3, **training},
    }
    made = make_plan(validate(Suite, fields, "the suite for the card"), device)
    return [trial for trial in made.trials if trial.method["method"] == "tenslora"]


def _reads_texts(backbone: str) -> bool:
    from tensorbench.backbones import describe

    return describe(backbone).input.modality == "text"


def _digits() -> dict[str, Any]:
    return {"task": "digits", "train_size": 512, "validation_size": 64, "test_size": 64}


def sentences(folder: Path) -> dict[str, Any]:
    """Writes 700 random sentences as long as CoLA's, and returns their description as a task."""
    file, drawn = folder / "sentences.csv", random.Random(0)
    words = ["".join(drawn.choices("abcdefghijklm", k=3)) for _ in range(200)]
    lines = [
        f"{' '.join(drawn.choices(words, k=drawn.randint(3, 12)))},{drawn.randint(0, 1)}" for _ in range(700)
    ]
    file.write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    return {"name": "sentences", "csv": str(file), "text": "text", "label": "label", "max_tokens": 64}


@contextmanager
def _workers(device: str, count: int) -> Iterator[Local]:
    threads = max(1, (os.cpu_count() or 1) // count)
    with Local([Slot(f"{device}/{i}", device, threads) for i in range(count)]) as workers:
        yield workers


def run(chosen: Sequence[Trial], workers: Local, at_once: int) -> int:
    """Runs trials with `at_once` busy workers and returns the number of failures."""
    waiting, running, failed = list(chosen), 0, 0

    def report(event: Event) -> None:
        nonlocal running, failed
        if event.ending is not None:
            running -= 1
            failed += event.ending.status != Status.FINISHED

    while waiting or running:
        while waiting and running < at_once:
            workers.submit(waiting.pop(0))
            running += 1
        workers.step(report)
    return failed
