"""The interface of backbones that methods use: geometry, sites, and the paths of their layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from tensorbench.methods.errors import UserError

if TYPE_CHECKING:
    from torch import nn

#: The projections of a transformer layer whose MLP is not gated.
PROJECTIONS = ("query", "key", "value", "output", "fc1", "fc2")

#: The projections of a layer with a gated MLP, which computes fc2(act(gate(x)) · fc1(x)). Methods that stack
#: projections stack them in this order.
GATED_PROJECTIONS = (*PROJECTIONS[:4], "gate", *PROJECTIONS[4:])

#: The projections to adapt, by the names that suites use. `gate` is skipped if the MLP is not gated.
Targets = Literal["qkv", "qkvo", "qkvo+mlp"]
TARGETS: dict[Targets, tuple[str, ...]] = {
    "qkv": PROJECTIONS[:3],
    "qkvo": PROJECTIONS[:4],
    "qkvo+mlp": GATED_PROJECTIONS,
}

#: The projections of a layer that read the same activation: in the attention, and in a gated MLP.
SHARED_INPUT, GATED_INPUT = ("query", "key", "value"), ("gate", "fc1")

#: The projections that may have fewer heads than query, and the projections of the MLP.
SHARED_HEADS, MLP = ("key", "value"), ("gate", "fc1", "fc2")


class Site(NamedTuple):
    """One projection of one layer."""

    layer: int
    projection: str

    def __str__(self) -> str:
        return f"{self.layer}.{self.projection}"


@dataclass(frozen=True)
class Geometry:
    """The sizes of a transformer, from which the parameters of a method are counted.

    Query writes heads · head_size channels, and output reads these. The hidden size may be another number.
    Key and value write kv_heads · head_size channels; each of their heads is shared by heads / kv_heads query
    heads. Formulas write d, H, K, h and L for `hidden`, `heads`, `kv_heads`, `head_size` and `layers`.
    """

    hidden: int
    heads: int
    layers: int
    mlp: int
    #: The number of parameters of the whole encoder, which full fine-tuning trains. None if unknown.
    encoder: int | None = field(default=None, compare=False)
    #: The number of heads of key and value. None: the same as `heads`.
    kv_heads: int = field(default=None, kw_only=True)  # type: ignore[assignment]
    #: Channels per head. None: the hidden size divided by `heads`.
    head_size: int = field(default=None, kw_only=True)  # type: ignore[assignment]
    #: Whether the MLP has a `gate` beside fc1.
    gated: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("hidden", "heads", "layers", "mlp", "kv_heads", "head_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"geometry: {name} must be at least 1, got {value}")
        if self.head_size is None:
            if self.hidden % self.heads:
                raise UserError(f"geometry: hidden size {self.hidden} is not divisible by {self.heads} heads")
            object.__setattr__(self, "head_size", self.hidden // self.heads)
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        if self.heads % self.kv_heads:
            raise UserError(
                f"geometry: {self.heads} query heads cannot share {self.kv_heads} key and value heads evenly"
            )

    @property
    def attention_width(self) -> int:
        """The number of channels that query writes and output reads."""
        return self.heads * self.head_size

    @property
    def projections(self) -> tuple[str, ...]:
        """The names of all projections of a layer."""
        return self.having(GATED_PROJECTIONS)

    def having(self, projections: Iterable[str]) -> tuple[str, ...]:
        """Returns `projections`, without `gate` if the MLP is not gated."""
        return tuple(name for name in projections if self.gated or name != "gate")

    def sites(self, projections: Iterable[str]) -> list[Site]:
        """Returns the sites of these projections, layer by layer.

        `gate` is skipped if the MLP is not gated.
        """
        return [Site(layer, name) for layer, name in product(range(self.layers), self.having(projections))]

    def shape(self, projection: str) -> tuple[int, int]:
        """Returns the shape (out, in) of a projection's weight."""
        if projection == "query":
            return self.attention_width, self.hidden
        if projection in SHARED_HEADS:
            return self.kv_heads * self.head_size, self.hidden
        if projection == "output":
            return self.hidden, self.attention_width
        if projection == "fc2":
            return self.hidden, self.mlp
        return self.mlp, self.hidden

    def full_rank(self, projections: Iterable[str]) -> int:
        """Returns the highest rank that any update can have: the smaller side of the largest weight."""
        return max(min(self.shape(name)) for name in projections)

    def __str__(self) -> str:
        shared = f", K={self.kv_heads}" if self.kv_heads != self.heads else ""
        size = f", h={self.head_size}" if self.attention_width != self.hidden else ""
        gated = ", gated" if self.gated else ""
        return f"d={self.hidden}, H={self.heads}{shared}{size}, L={self.layers}, mlp={self.mlp}{gated}"


class Backbone(Protocol):
    """A frozen pretrained model with a task head.

    For classification, `module(**inputs)` returns logits of shape (batch, classes). Every site has its own
    `nn.Linear`: a layer that computes several projections at once is split when the backbone is loaded.
    """

    @property
    def geometry(self) -> Geometry: ...

    @property
    def module(self) -> nn.Module: ...

    @property
    def head(self) -> nn.Module:
        """The task head, a submodule of `module`. Every method trains it, but no count includes it."""
        ...

    @property
    def encoder(self) -> nn.Module:
        """The part of `module` that full fine-tuning trains. It has all sites."""
        ...

    @property
    def projections(self) -> tuple[str, ...]:
        """The projections that every layer has, in the order of `GATED_PROJECTIONS`."""
        ...

    def path(self, site: Site) -> str:
        """Returns the dotted path of the site's linear layer inside `module`."""
        ...
