"""Checks that a trial without enough memory fails with that reason, and does not affect the next trial."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from tensorbench.backbones import Classifier
from tensorbench.execution.perform import perform
from tensorbench.records.measures import Measure
from tensorbench.records.record import Record
from tensorbench.records.words import Tag
from tensorbench.training.trial import Resources

from . import tables
from .runner import Row
from .toys import own_cache
from .trials import trials

#: The MiB of memory that a trial may take beyond the memory in use: too little for a step with a large batch.
SPARE = 64


def runs_out(device: str, backbone: str, batch: int) -> Iterator[Row]:
    """Runs a small trial, then one that runs out of memory, then the small trial again.

    On a GPU the second trial meets the allocator's limit. A CPU has no limit, so the trial's second forward
    pass raises the error.
    """
    real = device.startswith("cuda")
    with own_cache() as folder:
        small, large = (
            trials(device, backbone, folder, [0], steps=6, batch_size=size, deterministic=True)[0]
            for size in (8, batch)
        )
        resources = Resources(device)
        first = perform(small, resources, lambda progress: None)
        with _limited(device) if real else _simulated():
            out = perform(large, resources, lambda progress: None)
        rerun = perform(small, resources, lambda progress: None)
    yield _row("how memory ran out", "the allocator's limit" if real else "simulated: no card", None)
    yield _row("the trial before", _outcome(first), "finished")
    yield _row("the trial that ran out", _outcome(out), "failed: out of memory")
    yield _row("the trial after", _outcome(rerun), "finished")
    yield _row("its artifacts, bit for bit", "equal" if rerun.files == first.files else "other", "equal")
    if real:
        peaks = [outcome.metrics.get(Measure.PEAK_MIB, math.nan) for outcome in (first, rerun)]
        near = abs(peaks[1] - peaks[0]) <= 0.05 * peaks[0]
        yield _row("its peak memory", f"{peaks[1]:.0f} after {peaks[0]:.0f} MiB", None) | {
            "passed": _word(near)
        }


def _row(what: str, came: str, expected: str | None) -> Row:
    passed = None if expected is None else _word(came == expected)
    return {"table": tables.MEMORY, "what": what, "came": came, "expected": expected, "passed": passed}


def _word(passed: bool) -> str:
    return "yes" if passed else "**no**"


def _outcome(ending: Record) -> str:
    return f"{ending.status.lower()}: {ending.tag(Tag.FAILURE)}".removesuffix(": ")


@contextmanager
def _limited(device: str) -> Iterator[None]:
    """Limits this process to little more GPU memory than it uses now."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(torch.device(device)).total_memory
    held = torch.cuda.memory_reserved(device) + SPARE * 2**20
    # Without a number this is the current device, which the function takes as None.
    number = torch.device(device).index
    torch.cuda.set_per_process_memory_fraction(held / total, number)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, number)


@contextmanager
def _simulated() -> Iterator[None]:
    """Makes the second forward pass of a backbone run out of memory."""
    calls = 0

    def count(module: nn.Module, _: Any) -> None:
        nonlocal calls
        calls += isinstance(module, Classifier)
        if isinstance(module, Classifier) and calls == 2:
            raise torch.OutOfMemoryError("simulated: no memory is left")

    hook = register_module_forward_pre_hook(count)
    try:
        yield
    finally:
        hook.remove()
