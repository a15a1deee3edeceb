"""What torch has no public interface for. No other module uses private parts of torch.

`tests/test_internals.py` checks each part against the installed torch and says what to do where one changed.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode as DispatchMode

__all__ = [
    "DispatchMode",
    "at_end_of_backward",
    "compiled_in_place",
    "current_node",
    "graph_counts",
    "hook_count",
    "in_backward",
    "multiplies_bf16",
    "multiply_bf16_in_float32",
    "next_node",
    "reshaped",
]


def in_backward() -> bool:
    """Whether this thread is running a backward pass.

    If so, a layer that runs is being recomputed by gradient checkpointing. torch's public hooks only report
    that a backward pass has reached a tensor.
    """
    return torch._C._current_graph_task_id() != -1


def next_node() -> int:
    """Returns the number that autograd will give to the next node created by this thread."""
    return torch._C._autograd._get_sequence_nr()


def current_node() -> int:
    """Returns the number of the node whose gradient this thread is computing."""
    return torch._C._current_autograd_node()._sequence_nr()


def at_end_of_backward(callback: Callable[[], None]) -> None:
    """Calls a function when this thread's backward pass ends, as torch's DDP does.

    A hook on a tensor would run as soon as the tensor's gradient arrives.
    """
    torch.autograd.Variable._execution_engine.queue_callback(callback)


def reshaped(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns a view of `x` that autograd counts as independent of it, like a result of `matmul`.

    With a public view, an in-place operation on the result would copy gradients. Nothing else may use `x`.
    """
    return torch.ops.aten._unsafe_view(x, shape)


def hook_count(module: nn.Module) -> int:
    """Returns how many forward hooks and forward pre-hooks a module has."""
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


@contextmanager
def compiled_in_place(module: nn.Module) -> Iterator[None]:
    """A context in which `module.compile()` has been called. It raises where recompilation reaches its limit.

    Publicly, torch only logs at the limit and continues without compiling, and a module stays compiled.
    """
    torch.compiler.reset()
    module.compile()
    try:
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            yield
    finally:
        del module._compiled_call_impl
        torch.compiler.reset()


@contextmanager
def graph_counts() -> Iterator[Callable[[], tuple[int, int]]]:
    """Yields a function that returns the numbers of graphs and graph breaks compiled in this context."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    try:
        yield lambda: (counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))
    finally:
        torch.compiler.reset()


def multiplies_bf16() -> bool:
    """Whether the processor multiplies bfloat16: by avx512_bf16, AMX, or Arm's bf16."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def multiply_bf16_in_float32() -> torch.library.Library:
    """Replaces this process's products of bfloat16 matrices on the CPU. Returns the kernels.

    They multiply in float32 and round the product. They hold as long as the returned object exists.
    """
    kernels = torch.library.Library("aten", "IMPL", "CPU")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
        for name in ("mm", "addmm", "bmm", "baddbmm"):
            kernels.impl(name, _in_float32(getattr(torch.ops.aten, name).out))
        for name in ("addmm", "baddbmm"):
            kernels.impl(f"{name}_", _in_place(_in_float32(getattr(torch.ops.aten, name).out)))
    return kernels


def _in_float32(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns the kernel of a matrix product, which multiplies bfloat16 matrices in float32.

    `product` is the overload with the argument `out`.
    """

    def multiply(*matrices: Tensor, **factors: float) -> Tensor:
        dtype = matrices[0].dtype
        if dtype is torch.bfloat16:
            matrices = tuple(matrix.float() for matrix in matrices)
        return product(*matrices, **factors, out=matrices[0].new_empty(0)).to(dtype)

    return multiply


def _in_place(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda added, *matrices, **factors: added.copy_(product(added, *matrices, **factors))
