"""Measures how often a training step waits for the GPU, and how much of the time the GPU works.

Torch's warnings count the waits, and its profile gives the GPU's work.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from tensorbench.backbones import LoadedBackbone, load
from tensorbench.methods import Method
from tensorbench.tasks import PreparedData
from tensorbench.training.loop import train
from tensorbench.training.trial import computing

from . import tables, toys
from .correctness import listed
from .runner import Row

NOT_MEASURED = "not measured: no card"

#: The numbers of steps of two trainings that are compared. The comparison cancels one-time costs, such as the
#: evaluation and fetching the losses. Both numbers are below `LOSS_EVERY` of the training loop.
FEW, MORE = 8, 24

#: The text that identifies torch's warning about a wait for the GPU.
SYNCHRONISES = "called a synchronizing CUDA operation"

LONGEST = 64


def gaps(device: str, backbone: str, batch: int, names: Sequence[str] | None = None) -> Iterator[Row]:
    """Yields for each method how often a step waits for the GPU, and the share of time the GPU works."""
    loaded = load(backbone)
    loaded.module.to(device)
    loaded.reset(toys.CLASSES, torch.Generator().manual_seed(0))
    data = toys.data(loaded, MORE * batch, LONGEST, device)
    for method in listed(names):
        training = partial(_trained, loaded, method, data, batch)
        # Fetching and compiling in the first steps is no gap.
        training(FEW)
        measured = _on_card(training) if device.startswith("cuda") else _on_cpu(training)
        yield {"table": tables.GAPS, "backbone": backbone, "method": method.label} | measured


def _trained(loaded: LoadedBackbone, method: Method, data: PreparedData, batch: int, steps: int) -> float:
    """Trains by the harness's own loop and returns the milliseconds per step by its timer."""
    adapter = method.attach(loaded, torch.Generator().manual_seed(0))
    recipe = toys.recipe(steps, batch, bf16=data.train.labels.is_cuda)
    try:
        with computing(loaded.module.encoder, recipe):
            done = train(loaded, adapter, data, recipe, 0, toys.Losses())
    finally:
        adapter.detach()
    assert done.step_ms is not None
    return done.step_ms


def _on_cpu(training: Callable[[int], float]) -> Row:
    return {
        "synchronisations a step": NOT_MEASURED,
        "step ms": f"{training(FEW):.2f}",
        "kernels a step": NOT_MEASURED,
        "share of a step that the card works": NOT_MEASURED,
    }


def _on_card(training: Callable[[int], float]) -> Row:
    took = training(MORE)
    waits, kernels, busy = (
        (more - few) / (MORE - FEW)
        for few, more in zip(_seen(training, FEW), _seen(training, MORE), strict=True)
    )
    return {
        "synchronisations a step": f"{waits:.2f}",
        "step ms": f"{took:.2f}",
        "kernels a step": f"{kernels:.0f}",
        "share of a step that the card works": f"{busy / took:.2f}",
    }


def _seen(training: Callable[[int], float], steps: int) -> tuple[int, int, float]:
    """The number of waits for the GPU, and the number and total milliseconds of kernels and copies."""
    waits = _waits(training, steps)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        training(steps)
        torch.cuda.synchronize()
    events = [
        event
        for event in seen.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    ]
    return waits, len(events), sum(event.time_range.elapsed_us() for event in events) / 1e3


def _waits(training: Callable[[int], float], steps: int) -> int:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            training(steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum(SYNCHRONISES in str(warning.message) for warning in said)
