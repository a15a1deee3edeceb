"""What a method may know of a backbone: its geometry, its sites and where they live."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from methods.errors import UserError

if TYPE_CHECKING:
    from torch import nn

#: The linear maps of a transformer layer, in the order in which every stack of slices is built.
PROJECTIONS = ("query", "key", "value", "output", "fc1", "fc2")

#: What a method can be asked to adapt, by the name that suites use.
Targets = Literal["qkv", "qkvo", "qkvo+mlp"]
TARGETS: dict[Targets, tuple[str, ...]] = {
    "qkv": PROJECTIONS[:3],
    "qkvo": PROJECTIONS[:4],
    "qkvo+mlp": PROJECTIONS,
}

#: The projections of a layer that read the same activation.
SHARED_INPUT = ("query", "key", "value")


class Site(NamedTuple):
    """One projection of one layer."""

    layer: int
    projection: str

    def __str__(self) -> str:
        return f"{self.layer}.{self.projection}"


@dataclass(frozen=True)
class Geometry:
    """All that a parameter count needs. The heads split the hidden size evenly."""

    hidden: int
    heads: int
    layers: int
    mlp: int
    #: Parameters of the whole encoder, for full fine-tuning; None where nobody counted them.
    encoder: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("hidden", "heads", "layers", "mlp"):
            if getattr(self, name) < 1:
                raise UserError(f"geometry: {name} must be at least 1, got {getattr(self, name)}")
        if self.hidden % self.heads:
            raise UserError(f"geometry: hidden size {self.hidden} is not divisible by {self.heads} heads")

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    def sites(self, projections: Iterable[str]) -> list[Site]:
        """The sites of these projections, layer by layer."""
        return [Site(layer, name) for layer, name in product(range(self.layers), projections)]

    def shape(self, projection: str) -> tuple[int, int]:
        """(out, in) of a projection's weight."""
        if projection == "fc1":
            return self.mlp, self.hidden
        if projection == "fc2":
            return self.hidden, self.mlp
        return self.hidden, self.hidden

    def __str__(self) -> str:
        return f"d={self.hidden}, H={self.heads}, L={self.layers}, mlp={self.mlp}"


class Backbone(Protocol):
    """A frozen pretrained classifier: `module(**inputs)` returns logits of shape (batch, classes).

    Every site is an `nn.Linear` of its own (fused projections are split on loading).
    """

    @property
    def geometry(self) -> Geometry: ...

    @property
    def module(self) -> nn.Module: ...

    @property
    def head(self) -> nn.Module:
        """The task head, part of `module`, trained beside every adapter and never counted with it."""
        ...

    @property
    def projections(self) -> tuple[str, ...]:
        """The projections that every layer has, in the order of `PROJECTIONS`."""
        ...

    def path(self, site: Site) -> str:
        """Dotted path of the site's linear layer inside `module`."""
        ...
