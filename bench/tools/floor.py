"""Two lower bounds of a training step: the time with one trained bias, and a method's multiplications."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tensorbench.methods import Adapter, Backbone, Site


def _product(_: Sequence[int], left: Sequence[int], right: Sequence[int], **__: Any) -> int:
    """Counts the operations of a matrix product by the shapes of its factors. Called by torch's counter."""
    return 2 * math.prod(left) * right[-1]


#: In-place products, which torch's counter does not know.
IN_PLACE = {torch.ops.aten.addmm_: _product, torch.ops.aten.baddbmm_: _product}


class OneBias(Adapter):
    """An adapter that trains only one bias, the first in the backbone. No adapter can cost less.

    If no projection has a bias, as in Llama, the first projection gets one until the adapter is detached.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone, [Site(0, name) for name in backbone.projections])
        biases = [base.bias for base in self.bases.values() if base.bias is not None]
        self._first: nn.Linear | None = None
        if biases:
            self._bias = biases[0]
        else:
            self._first = next(iter(self.bases.values()))
            self._bias = nn.Parameter(self._first.weight.new_zeros(self._first.out_features))
            self._first.bias = self._bias
        self._bias.requires_grad_(True)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {"bias": self._bias}

    def factors(self) -> dict[Site, tuple[Tensor, Tensor]]:
        return {}

    def detach(self) -> None:
        if self._first is not None:
            self._first.register_parameter("bias", None)
        super().detach()


def autocast(kind: str, bf16: bool) -> AbstractContextManager[object]:
    """Returns a context for forward passes: autocast to bfloat16 if `bf16`, and else one without effect.

    `kind` is the type of the device, such as "cuda".
    """
    return torch.autocast(kind, dtype=torch.bfloat16) if bf16 else nullcontext()


def training_loss(
    module: nn.Module, adapter: Adapter, inputs: dict[str, Tensor], labels: Tensor, bf16: bool
) -> Tensor:
    """Computes the loss of a batch, including the method's own term if it has one."""
    with autocast(labels.device.type, bf16):
        loss = F.cross_entropy(module(**inputs).float(), labels)
    return loss if (extra := adapter.extra_loss()) is None else loss + extra


def multiplications(module: nn.Module, adapter: Adapter, inputs: dict[str, Tensor], labels: Tensor) -> int:
    """Counts the multiplications of all matrix products and convolutions in a training step.

    The forward and the backward pass count. Attention counts as its two products, whatever kernel runs it.
    Elementwise work (sums, norms, dropout, the optimizer) does not count. No gradient is left on a parameter.
    """
    counter = FlopCounterMode(display=False, custom_mapping=dict(IN_PLACE))
    with sdpa_kernel(SDPBackend.MATH), counter:
        training_loss(module, adapter, inputs, labels, bf16=False).backward()
    for group in adapter.parameter_groups():
        for parameter in group["params"]:
            parameter.grad = None
    # The counter counts a multiplication and the addition after it as two operations.
    return counter.get_total_flops() // 2
