"""Sets how a trial computes: on which GPU, compiled, with deterministic algorithms, in which precision."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorbench.machine.precision import computes_bf16, unsupported
from tensorbench.methods.torch_internals import compiled_in_place, multiply_bf16_in_float32
from tensorbench.plan.trial import Trial

#: The environment variable that makes cuBLAS sum in a fixed order, if set to ":4096:8" or ":16:8" (NVIDIA's
#: documentation).
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
# Set once for the whole process, before its first product on a GPU. Torch reads the variable at the first
# product or at each one, depending on its version, and allocates the workspace at the first. A later change
# has no effect, or changes bits, or lets cuBLAS write past the workspace.
if not (torch.cuda.is_initialized() and torch.cuda.memory_reserved()):
    os.environ.setdefault(CUBLAS, ":4096:8")

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
    with compiled_in_place(encoder):
        yield


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """A context in which torch uses only deterministic algorithms, if `enabled`.

    Torch raises for operations without a deterministic algorithm.
    """
    if not enabled:
        yield
        return
    enabled, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    tuned = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        torch.backends.cudnn.benchmark = tuned


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """A context that sets whether GPUs round the factors of float32 products and convolutions to TF32.

    By default, torch rounds only the factors of convolutions.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = enabled
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


@contextmanager
def frozen_in_bf16(encoder: nn.Module, enabled: bool) -> Iterator[None]:
    """A context in which frozen linear layers and convolutions keep a bfloat16 copy of their weights.

    Autocast caches the rounded weights of trained layers during a forward pass, but rounds the weights of
    frozen layers at each use. For LoRA on RoBERTa, this context saves 144 of 598 casts of a step. The results
    have the same bits. The original weights keep their dtype, since methods and exports read them. They must
    not change in the context.
    """
    layers = [
        layer
        for layer in encoder.modules()
        if enabled
        and isinstance(layer, nn.Linear | nn.Conv2d)
        # A subclass may compute something else.
        and type(layer) in (nn.Linear, nn.Conv2d)
        and getattr(layer, "padding_mode", "zeros") == "zeros"
        and not any(parameter.requires_grad for parameter in layer.parameters())
    ]
    for layer in layers:
        layer.forward = _rounded_once(layer)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _rounded_once(layer: nn.Linear | nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """Returns the layer's forward pass. Under autocast, it uses a copy of the weights in bfloat16."""
    exact, kind = layer.forward, layer.weight.device.type
    weight = layer.weight.detach().to(torch.bfloat16)
    bias = None if layer.bias is None else layer.bias.detach().to(torch.bfloat16)

    def forward(x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(kind):
            return exact(x)
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        return F.linear(x, weight, bias)

    return forward


@cache
def emulate_bf16() -> torch.library.Library | None:
    """Makes this process multiply bfloat16 matrices on the CPU in float32, then round the product.

    Hardware does the same, except for the order of its sums. On a processor without bf16, torch's own bf16
    kernels take 7 to 24 times as long as float32 kernels. These kernels take about as long as float32
    kernels. Returns the kernels. If the processor computes bf16 in hardware, changes nothing and returns
    None.
    """
    if computes_bf16():
        return None
    return multiply_bf16_in_float32()


def refused_precision(trials: Iterable[Trial], device: torch.device) -> str:
    """Returns a message if a device cannot train some trials in their precision. Empty if it can train all.

    A processor that only emulates bf16 cannot train in it, unless the environment variable named
    `EMULATE_BF16` is 1. Trials whose backbone is stored in bfloat16 are exempt, since they have no other
    precision.
    """
    precisions = {trial.recipe.precision for trial in trials if trial.backbone.dtype != "bfloat16"}
    emulates = device.type == "cpu" and os.environ.get(EMULATE_BF16) != "1" and not computes_bf16()
    if emulates and "bf16" in precisions:
        return (
            "training.precision: this processor emulates bf16, which is slower than fp32; accepted: fp32 and "
            f"auto (or set {EMULATE_BF16}=1 to emulate it all the same)"
        )
    return next(filter(None, (unsupported(precision, str(device)) for precision in sorted(precisions))), "")
