"""Linear layers whose frozen weights are held in eight or four bits."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorbench.methods.backbone import Backbone
from tensorbench.methods.errors import UserError

#: `int8`: each weight is an integer of eight bits, with a scale per row. `nf4`: each weight is one of 16
#: quantiles of a normal distribution, with a scale per block of weights (arXiv 2305.14314). Unlike in the
#: paper, the scales themselves are not quantised.
Quantisation = Literal["int8", "nf4"]

#: The number of weights in a block of nf4.
BLOCK = 64


class QuantisedLinear(nn.Linear):
    """A frozen linear layer that holds its weight in int8 or nf4, quantised by bitsandbytes on the CPU.

    Only the weight is rounded. A forward dequantises the weight, multiplies in the precision of a dense
    layer, and discards the dense weight. The backward dequantises the weight again. So on every device,
    outputs equal those of a dense layer with the dequantised weight. Raises UserError if bitsandbytes is not
    installed.
    """

    def __init__(self, layer: nn.Linear, quantisation: Quantisation) -> None:
        # `nn.Linear.__init__` would make a dense weight.
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.quantisation, self.training = quantisation, layer.training
        functional, weight = _functional(), layer.weight.detach().float().cpu()
        if quantisation == "int8":
            packed, largest, _ = functional.int8_vectorwise_quant(weight)
            scales = largest[:, None] / 127
        else:
            packed, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
            scales = state.absmax
        self.register_buffer("packed", packed.to(layer.weight.device))
        self.register_buffer("scales", scales.to(layer.weight.device))
        self.register_parameter("bias", layer.bias)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dequantised weight (out, in) in float32, a new tensor at every access."""
        shape = (self.out_features, self.in_features)
        return _dequantised(self.get_buffer("packed"), self.get_buffer("scales"), self.quantisation, shape)

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        shape = (self.out_features, self.in_features)
        scales = self.get_buffer("scales")
        y: Tensor = _Product.apply(x, self.get_buffer("packed"), scales, self.quantisation, shape)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Product(torch.autograd.Function):
    """Computes x · Wᵀ. For the backward, autograd keeps the quantised W instead of the dense W."""

    @staticmethod
    def forward(
        context: Any, x: Tensor, packed: Tensor, scales: Tensor, quantisation: Quantisation, shape: Any
    ) -> Tensor:
        context.save_for_backward(packed, scales)
        context.quantisation, context.shape = quantisation, shape
        return F.linear(x, _dequantised(packed, scales, quantisation, shape).to(x.dtype))

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        packed, scales = context.saved_tensors
        weight = _dequantised(packed, scales, context.quantisation, context.shape)
        return gradients[0] @ weight.to(gradients[0].dtype), None, None, None, None


def _dequantised(packed: Tensor, scales: Tensor, quantisation: Quantisation, shape: Any) -> Tensor:
    """Returns the weight in float32. `shape` is (out, in)."""
    scales = scales.float()
    if quantisation == "int8":
        return packed * scales
    functional = _functional()
    # A flat shape: on processors with AVX-512, bitsandbytes counts the blocks of each row by themselves,
    # though a block may hold the end of a row and the start of the next.
    size = torch.Size([math.prod(shape)])
    state = functional.QuantState(
        absmax=scales, shape=size, dtype=torch.float32, blocksize=BLOCK, quant_type="nf4"
    )
    weight: Tensor = functional.dequantize_4bit(packed, state)
    return weight.reshape(shape)


def quantisation_of(backbone: Backbone) -> Quantisation | None:
    """Returns how the weights of a backbone without adapter are quantised. None if they are not."""
    for site in backbone.geometry.sites(backbone.projections):
        layer = backbone.module.get_submodule(backbone.path(site))
        if isinstance(layer, QuantisedLinear):
            return layer.quantisation
    return None


def check_library() -> None:
    """Raises UserError if the package bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise UserError(
            "weights are quantised by the package bitsandbytes: pip install 'tensorpeft-bench[quantised]'"
        )


def _functional() -> Any:
    check_library()
    import bitsandbytes.functional

    return bitsandbytes.functional
