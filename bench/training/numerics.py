"""Sets how a trial computes: on which GPU, compiled, with deterministic algorithms, in which precision."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

from bench.plan.trial import Trial
from methods import UserError

#: The environment variable that makes cuBLAS sum in a fixed order, if set to ":4096:8" or ":16:8" (NVIDIA's
#: documentation).
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"

#: The environment variable that allows bf16 on a processor that emulates it, if set to 1.
EMULATE_BF16 = "TENSORBENCH_EMULATE_BF16"


def take_device(device: torch.device) -> None:
    """Makes a GPU the thread's default, for libraries that take no device argument.

    Does nothing for a CPU, and for "cuda" without an index, which means the default.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


@contextmanager
def compiled(encoder: nn.Module, enabled: bool) -> Iterator[None]:
    """A context in which the encoder is compiled by `torch.compile`, if `enabled`.

    This works with every adapter: adapters contract their factors in a hook of the enclosing module, so that
    the results are inputs of the compiled graph. The compiled code is dropped at the end, since the next
    trial has other layers.
    """
    if not enabled:
        yield
        return
    torch.compiler.reset()
    encoder.compile()
    try:
        # Raise at the recompilation limit, where torch would only log and continue without compiling.
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            yield
    finally:
        del encoder._compiled_call_impl
        torch.compiler.reset()


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """A context in which torch uses only deterministic algorithms, if `enabled`.

    Torch raises for operations without a deterministic algorithm. cuBLAS reads its setting only on first use.
    So a process that ran earlier trials on a GPU in another mode may keep that mode.
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
    """Whether this processor multiplies bfloat16 in hardware (avx512_bf16, AMX or Arm's bf16)."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def emulate_bf16() -> torch.library.Library | None:
    """Makes this process multiply bfloat16 matrices on the CPU in float32, then round the product.

    Hardware does the same, except for the order of its sums. On a processor without bf16, torch's kernels
    take 7 to 24 times as long as those of float32; these take about as long. Returns the kernels. Changes
    nothing and returns None where `computes_bf16()`.
    """
    if computes_bf16():
        return None
    kernels = torch.library.Library("aten", "IMPL", "CPU")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
        for name in ("mm", "addmm", "bmm", "baddbmm"):
            kernels.impl(name, _in_float32(getattr(torch.ops.aten, name).out))
        for name in ("addmm", "baddbmm"):
            kernels.impl(f"{name}_", _in_place(_in_float32(getattr(torch.ops.aten, name).out)))
    return kernels


def _in_float32(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The product whose form with `out` is given. Bfloat16 matrices are multiplied in float32."""

    def multiply(*matrices: Tensor, **factors: float) -> Tensor:
        dtype = matrices[0].dtype
        if dtype is torch.bfloat16:
            matrices = tuple(matrix.float() for matrix in matrices)
        return product(*matrices, **factors, out=matrices[0].new_empty(0)).to(dtype)

    return multiply


def _in_place(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda added, *matrices, **factors: added.copy_(product(added, *matrices, **factors))


def check_precision(trials: Iterable[Trial], device: torch.device) -> None:
    """Raises UserError if a trial with `precision: bf16` would run on a processor that emulates bf16.

    Trials whose backbone is stored in bfloat16 are exempt, since they have no other precision. All trials are
    exempt if the environment variable `EMULATE_BF16` is 1.
    """
    if device.type != "cpu" or os.environ.get(EMULATE_BF16) == "1" or computes_bf16():
        return
    if any(trial.recipe.precision == "bf16" and trial.backbone.dtype != "bfloat16" for trial in trials):
        raise UserError(
            "training.precision: this processor emulates bf16, which is slower than fp32; accepted: fp32 and "
            f"auto (or set {EMULATE_BF16}=1 to emulate it all the same)"
        )
