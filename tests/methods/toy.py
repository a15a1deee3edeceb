"""A backbone of plain torch layers in float64 for any geometry."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorbench.methods import create
from tensorbench.methods.backbone import GATED_PROJECTIONS, Geometry, Site
from tensorbench.methods.lowrank import LowRankAdapter

CLASSES = 3

GEOMETRY = Geometry(12, 3, 2, 48)


class Layer(nn.Module):
    def __init__(self, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__()
        self.geometry = geometry
        for name in geometry.projections:
            # Two sites have no bias, so a trained bias must find its place there too.
            bias = name not in ("key", "fc1")
            linear = nn.Linear(*reversed(geometry.shape(name)), bias=bias, dtype=torch.float64)
            for parameter in linear.parameters():
                draws = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data = draws / math.sqrt(geometry.hidden)
            self.add_module(name, linear)

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x, x.shape[-1:])
        query, key, value = (
            getattr(self, name)(normed).unflatten(-1, (-1, self.geometry.head_size)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        attended = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        x = x + self.output(attended.transpose(1, 2).flatten(2))
        normed = F.layer_norm(x, x.shape[-1:])
        gate = torch.sigmoid(self.gate(normed)) if self.geometry.gated else 1
        return x + self.fc2(gate * torch.tanh(self.fc1(normed)))


class Classifier(nn.Module):
    def __init__(self, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(geometry, generator) for _ in range(geometry.layers))
        self.head = nn.Linear(geometry.hidden, CLASSES, dtype=torch.float64)
        self.checkpoint = ""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if self.checkpoint:
                x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=self.checkpoint == "reentrant")
            else:
                x = layer(x)
        return self.head(x.mean(1))


class ToyBackbone:
    """Implements `tensorbench.methods.backbone.Backbone` in eval mode.

    `module(x)` takes (batch, tokens, hidden).
    """

    def __init__(self, geometry: Geometry, projections: tuple[str, ...] = GATED_PROJECTIONS) -> None:
        self.geometry, self.projections = geometry, geometry.having(projections)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.module = Classifier(geometry, torch.Generator().manual_seed(0)).eval()

    @property
    def head(self) -> nn.Module:
        return self.module.head

    @property
    def encoder(self) -> nn.Module:
        return self.module.layers

    def path(self, site: Site) -> str:
        return f"layers.{site.layer}.{site.projection}"

    def inputs(self, batch: int = 2, tokens: int = 3) -> Tensor:
        shape = (batch, tokens, self.geometry.hidden)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def scatter(parameters: dict[str, nn.Parameter], seed: int = 2, sd: float = 1.0) -> None:
    """Draws every parameter anew from a normal distribution of standard deviation `sd`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters.values():
            draws = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(sd * draws)


def attached(
    geometry: Geometry = GEOMETRY, name: str = "tenslora", **options: Any
) -> tuple[ToyBackbone, LowRankAdapter]:
    """A backbone with an adapter of the method at rank 2, away from its start."""
    backbone = ToyBackbone(geometry)
    method = create(name, **options).isorank(2)
    adapter = method.attach(backbone, torch.Generator().manual_seed(0))
    assert isinstance(adapter, LowRankAdapter)
    scatter(adapter.named_parameters())
    return backbone, adapter


def gradients(backbone: ToyBackbone, adapter: LowRankAdapter) -> dict[str, Tensor | None]:
    """The gradients of the adapter's parameters after one backward. A missing gradient is None."""
    for parameter in adapter.named_parameters().values():
        parameter.grad = None
    backbone.module(backbone.inputs()).square().sum().backward()
    return {name: parameter.grad for name, parameter in adapter.named_parameters().items()}
