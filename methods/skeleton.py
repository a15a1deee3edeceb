"""The linear layers of a geometry without the rest of a transformer, to count and try methods on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from methods.backbone import Geometry, Site


class Skeleton(nn.Module):
    """A module per layer, with a linear layer per projection under the projection's name."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        for layer in range(geometry.layers):
            projections = nn.ModuleDict()
            for name in geometry.projections:
                out, in_ = geometry.shape(name)
                projections[name] = nn.Linear(in_, out)
            self.add_module(str(layer), projections)


class _Classifier(nn.Module):
    """A skeleton whose forward uses every layer, with a classification head."""

    def __init__(self, geometry: Geometry, classes: int) -> None:
        super().__init__()
        self.geometry = geometry
        self.encoder = Skeleton(geometry)
        self.head = nn.Linear(geometry.hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of x (batch, hidden)."""
        for layer in self.encoder.children():
            assert isinstance(layer, nn.ModuleDict)
            keys, values = self._repeated(layer["key"](x)), self._repeated(layer["value"](x))
            x = x + layer["output"](layer["query"](x) * keys + values)
            inner = F.gelu(layer["fc1"](x))
            x = x + layer["fc2"](inner * layer["gate"](x) if self.geometry.gated else inner)
        logits: Tensor = self.head(x)
        return logits

    def _repeated(self, x: Tensor) -> Tensor:
        """Repeats each head for all query heads that share it: (batch, heads · head size)."""
        heads = x.unflatten(-1, (self.geometry.kv_heads, self.geometry.head_size))
        return heads.repeat_interleave(self.geometry.heads // self.geometry.kv_heads, -2).flatten(-2)


@dataclass(frozen=True)
class SkeletonBackbone:
    """A `Backbone` of random layers in eval mode, sufficient for attaching a method."""

    geometry: Geometry
    module: nn.Module

    @classmethod
    def random(cls, geometry: Geometry, classes: int = 3) -> SkeletonBackbone:
        """Draws the weights from torch's global stream."""
        return cls(geometry, _Classifier(geometry, classes).eval())

    @property
    def projections(self) -> tuple[str, ...]:
        return self.geometry.projections

    @property
    def head(self) -> nn.Module:
        return self.module.get_submodule("head")

    def path(self, site: Site) -> str:
        return f"encoder.{site}"
