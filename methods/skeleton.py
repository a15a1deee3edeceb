"""Models with the linear layers of a transformer and little else, to count and try methods on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from tensorbench.methods.backbone import Geometry, Site

#: The number of classes of the head.
CLASSES = 3


class Skeleton(nn.Module):
    """The linear layers of a transformer. For example, `0.query` is the first layer's query projection."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        for layer in range(geometry.layers):
            projections = nn.ModuleDict()
            for name in geometry.projections:
                out, in_ = geometry.shape(name)
                projections[name] = nn.Linear(in_, out)
            self.add_module(str(layer), projections)


class _Classifier(nn.Module):
    """A skeleton with a classification head, and with a forward that uses every linear layer."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        self.encoder = Skeleton(geometry)
        self.head = nn.Linear(geometry.hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (batch, CLASSES) for x (batch, hidden)."""
        for layer in self.encoder.children():
            assert isinstance(layer, nn.ModuleDict)
            keys, values = self._repeated(layer["key"](x)), self._repeated(layer["value"](x))
            x = x + layer["output"](layer["query"](x) * keys + values)
            inner = F.gelu(layer["fc1"](x))
            x = x + layer["fc2"](inner * layer["gate"](x) if self.geometry.gated else inner)
        logits: Tensor = self.head(x)
        return logits

    def _repeated(self, x: Tensor) -> Tensor:
        """Repeats each key or value head for all query heads that share it: (batch, heads · head size)."""
        heads = x.unflatten(-1, (self.geometry.kv_heads, self.geometry.head_size))
        return heads.repeat_interleave(self.geometry.heads // self.geometry.kv_heads, -2).flatten(-2)


@dataclass(frozen=True)
class SkeletonBackbone:
    """A `Backbone` with random weights, on which a method can be tried. It is in eval mode."""

    geometry: Geometry
    module: nn.Module

    @classmethod
    def random(cls, geometry: Geometry) -> SkeletonBackbone:
        """Builds a backbone whose weights are drawn from torch's global random stream."""
        return cls(geometry, _Classifier(geometry).eval())

    @property
    def projections(self) -> tuple[str, ...]:
        return self.geometry.projections

    @property
    def head(self) -> nn.Module:
        return self.module.get_submodule("head")

    @property
    def encoder(self) -> nn.Module:
        return self.module.get_submodule("encoder")

    def path(self, site: Site) -> str:
        return f"encoder.{site}"
