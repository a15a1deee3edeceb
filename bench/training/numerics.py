"""Where and how is computed: the current GPU, and what a recipe can ask for, which must leave no trace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

#: NVIDIA documents that cuBLAS may add in another order each time, unless this has one of two values.
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def take_device(device: torch.device) -> None:
    """Makes a GPU the current one of this thread, which is what libraries use that are told of none.

    A GPU without a number is the current one already.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


@contextmanager
def compiled(encoder: nn.Module, wanted: bool) -> Iterator[None]:
    """Inside, the encoder runs through `torch.compile`, whatever adapter is on it.

    Adapters contract their factors in a hook of the module around it, so that these are inputs of the
    compiled graph. Compiled code is dropped at the end: the next trial has other layers there.
    """
    if not wanted:
        yield
        return
    torch.compiler.reset()
    encoder.compile()
    try:
        # Past its limit of recompilations torch would go on without compiling, and only log it.
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            yield
    finally:
        del encoder._compiled_call_impl
        torch.compiler.reset()


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, torch uses only algorithms that give the same bits every time, and raises where it has none.

    On a GPU cuBLAS reads its setting when it is first used. A process that ran trials in another mode before
    may keep to that one.
    """
    if not wanted:
        yield
        return
    enabled, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    setting, tuned = os.environ.get(CUBLAS), torch.backends.cudnn.benchmark
    os.environ.setdefault(CUBLAS, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        torch.backends.cudnn.benchmark = tuned
        if setting is None:
            del os.environ[CUBLAS]
