"""The current GPU, and switches of a recipe that must leave no trace: compilation, determinism, precision."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bench.plan.trial import Trial
from methods import UserError

#: NVIDIA documents that cuBLAS may sum in another order each time unless this variable has one of two values.
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"

#: Set to 1, this environment variable allows bf16 on a processor that emulates it.
EMULATE_BF16 = "TENSORBENCH_EMULATE_BF16"


def take_device(device: torch.device) -> None:
    """Makes this GPU the thread's default, for libraries that take no device argument.

    A GPU without a number is the current one already.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


@contextmanager
def compiled(encoder: nn.Module, enabled: bool) -> Iterator[None]:
    """Within the context the encoder runs through `torch.compile`, with any adapter.

    Adapters contract their factors in a hook of the module around it, so that these are inputs of the
    compiled graph. Compiled code is dropped at the end: the next trial has other layers there.
    """
    if not enabled:
        yield
        return
    torch.compiler.reset()
    encoder.compile()
    try:
        # Beyond its limit of recompilations torch would only log it and go on without compiling.
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            yield
    finally:
        del encoder._compiled_call_impl
        torch.compiler.reset()


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Within the context torch uses only algorithms with the same bits every time, and raises without one.

    On a GPU cuBLAS reads its setting when it is first used. A process that ran trials in another mode before
    may keep to that one.
    """
    if not enabled:
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


def computes_bf16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware: avx512_bf16, AMX or Arm's bf16."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def check_precision(trials: Iterable[Trial], device: torch.device) -> None:
    """Raises UserError for `precision: bf16` on a processor that would emulate it.

    Backbones in bfloat16 are exempt: they have no other precision.
    """
    if device.type != "cpu" or os.environ.get(EMULATE_BF16) == "1" or computes_bf16():
        return
    if any(trial.recipe.precision == "bf16" and trial.backbone.dtype != "bfloat16" for trial in trials):
        raise UserError(
            "training.precision: this processor emulates bf16, which is slower than fp32; accepted: fp32 and "
            f"auto (or set {EMULATE_BF16}=1 to emulate it all the same)"
        )
