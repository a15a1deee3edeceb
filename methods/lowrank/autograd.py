"""The parts of torch's autograd that have no public name. No other module of ours calls what torch hides."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def in_backward() -> bool:
    """Whether this thread runs a backward now.

    Public hooks tell when a backward passes some tensor, not whether code is called from inside one, which is
    what distinguishes a checkpointed layer's second run from a call out of turn.
    """
    return torch._C._current_graph_task_id() != -1


def after_backward(call: Callable[[], None]) -> None:
    """Calls `call` once when the backward that this thread runs now has ended, as torch's own DDP does.

    A hook on a tensor would run when the gradient reaches it, while other layers may still be recomputed.
    """
    torch.autograd.Variable._execution_engine.queue_callback(call)


def next_node() -> int:
    """The number that autograd gives to the next node which this thread makes."""
    return torch._C._autograd._get_sequence_nr()


def current_node() -> int:
    """The number of the node whose gradient this thread computes now; only inside of a backward."""
    return torch._C._current_autograd_node()._sequence_nr()


def reshaped(result: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`result`, which nothing else holds, in another shape, ready for an operation in place.

    To autograd a view is an alias, whose gradient an operation in place would copy. This one it takes for a
    tensor of its own, as `matmul` has it for its results.
    """
    return torch.ops.aten._unsafe_view(result, shape)
