"""TensLoRA: attention updates stacked into higher-order tensors (arXiv 2509.19391).

The query, key and value updates, each (d, d), are stacked over heads ("att"), projections ("qkv")
and layers ("depth") in the seven combinations of the paper, and every stack is factorised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import nn

from methods.backbone import Geometry, Site
from methods.errors import UserError
from methods.factorizations import FACTORIZATIONS, Init
from methods.lowrank import Contracted, LowRankMethod, Parametrisation
from methods.ranks import nearest, nearest_rank, too_small

Variant = Literal["att", "qkv", "depth", "att_qkv", "att_depth", "qkv_depth", "att_qkv_depth"]
VARIANTS: tuple[Variant, ...] = Variant.__args__  # type: ignore[attr-defined]

#: The heuristic's bound on (rank of the d-sized mode) / (rank of the head-size mode).
LARGEST_RATIO = 5

CountRanks = Callable[[tuple[int, ...]], int]


class TensLoRA(LowRankMethod):
    """One of the seven variants. y = W·x + b + scale · ΔW·x, ΔW a slice of a factorised tensor.

    Starts with a zero core, so ΔW = 0 and the first step moves only the core.
    """

    name: ClassVar[str] = "tenslora"
    titled: ClassVar[frozenset[str]] = frozenset({"variant", "ranks"})

    #: What is stacked: heads (att), projections (qkv), layers (depth), or a combination.
    variant: Variant
    #: One rank for each of `modes`, in their order. None: set by a budget.
    ranks: tuple[PositiveInt, ...] | None = None
    factorization: Literal["tucker"] = "tucker"
    #: `aligned`: output channel = head · head size + j, the backbone's real heads. `interleaved`:
    #: j · heads + head, as the reference code unfolds it, so that a slice is spread over all heads.
    heads: Literal["aligned", "interleaved"] = "aligned"
    #: How the factors start; the core is zero in every case.
    init: Init = Field("orthogonal")

    @model_validator(mode="after")
    def _one_rank_for_each_mode(self) -> Self:
        if self.ranks is not None and len(self.ranks) != len(self.modes):
            raise ValueError(
                f"ranks: variant '{self.variant}' has {len(self.modes)} modes ({', '.join(self.modes)}), "
                f"got {len(self.ranks)} ranks {self.ranks}"
            )
        return self

    @property
    def projections(self) -> tuple[str, ...]:
        return ("query", "key", "value")

    @property
    def size(self) -> tuple[int, ...] | None:
        return self.ranks

    @property
    def title(self) -> str:
        return f"TensLoRA {self.variant}"

    def identity(self) -> dict[str, Any]:
        identity = super().identity()
        # Where heads are no mode their order changes nothing, and one trial serves both.
        return identity if "head" in self.modes else {**identity, "heads": "aligned"}

    @property
    def modes(self) -> tuple[str, ...]:
        """Mode names: input, output (or head_size, head), projection, layer."""
        stacked = self.variant.split("_")
        outputs = ("head_size", "head") if "att" in stacked else ("output",)
        projection = ("projection",) if "qkv" in stacked else ()
        layer = ("layer",) if "depth" in stacked else ()
        return ("input", *outputs, *projection, *layer)

    def _sizes(self, geometry: Geometry) -> dict[str, int]:
        return {
            "input": geometry.hidden,
            "output": geometry.hidden,
            "head_size": geometry.head_size,
            "head": geometry.heads,
            "projection": len(self.projections),
            "layer": geometry.layers,
        }

    def shape(self, geometry: Geometry) -> tuple[int, ...]:
        """The size of every mode."""
        sizes = self._sizes(geometry)
        return tuple(sizes[mode] for mode in self.modes)

    def tensor_axes(self, geometry: Geometry) -> dict[str, int]:
        """What is not stacked, with its size: one tensor for each combination."""
        sizes = self._sizes(geometry)
        return {axis: sizes[axis] for axis in ("layer", "projection") if axis not in self.modes}

    def count(self, geometry: Geometry) -> int:
        """(number of tensors) · (Σ r·n + Π r) for Tucker."""
        if self.ranks is None:
            raise UserError(f"{self.label}: ranks are free; give them, or a budget")
        return self._count_with(geometry, self.ranks)

    def _count_with(self, geometry: Geometry, ranks: tuple[int, ...]) -> int:
        tensors = math.prod(self.tensor_axes(geometry).values())
        return tensors * FACTORIZATIONS[self.factorization].count(self.shape(geometry), ranks)

    def isorank(self, rank: int) -> Self:
        return self.model_copy(update={"ranks": (rank,) * len(self.modes)})

    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        """The paper's heuristic: head, projection and layer modes keep their full rank, equal modes
        share a rank, larger modes get larger ranks.

        Where heads are a mode, many rank pairs come near the budget and the very nearest can be
        degenerate; only those with 1 < r(input) / r(head_size) ≤ 5 count. Where the full small modes
        alone exceed the budget, they are capped as little as needed. `uneven` lets r(input) be one above
        r(output).
        """
        shape = self.shape(geometry)

        def count(ranks: tuple[int, ...]) -> int:
            return self._count_with(geometry, ranks)

        smallest = count((1,) * len(shape))
        if smallest > budget:
            raise too_small(self.label, budget, smallest)
        small = dict(zip(self.modes, shape, strict=True))
        cap = max(geometry.heads, geometry.layers, len(self.projections))
        while cap > 1 and count(self._expand(small, 1, 1, cap)) > budget:
            cap -= 1
        candidates = (
            self._expand(small, wide, narrow, cap)
            for wide, narrow in self._wide_and_narrow(small, cap, budget, count, uneven)
        )
        return self.model_copy(update={"ranks": nearest(candidates, count, budget)})

    def _expand(self, sizes: dict[str, int], wide: int, narrow: int, cap: int) -> tuple[int, ...]:
        """Ranks from those of input (wide), of output or head_size (narrow), and the cap of the rest."""
        given = {"input": wide, "output": narrow, "head_size": narrow}
        return tuple(given.get(mode) or min(size, cap) for mode, size in sizes.items())

    def _wide_and_narrow(
        self, sizes: dict[str, int], cap: int, budget: int, count: CountRanks, uneven: bool
    ) -> Iterator[tuple[int, int]]:
        if "head_size" not in sizes:
            rank = nearest_rank(lambda r: count(self._expand(sizes, r, r, cap)), budget, high=sizes["input"])
            yield rank, rank
            if uneven:
                yield from ((r + 1, r) for r in (rank - 1, rank) if 1 <= r < sizes["input"])
            return
        for narrow in range(1, sizes["head_size"] + 1):
            if narrow > 1 and count(self._expand(sizes, narrow, narrow - 1, cap)) > budget:
                return
            yield (
                nearest_rank(
                    lambda r, narrow=narrow: count(self._expand(sizes, r, narrow, cap)),  # type: ignore[misc]
                    budget,
                    low=min(narrow + 1, sizes["input"]),
                    high=min(LARGEST_RATIO * narrow, sizes["input"]),
                ),
                narrow,
            )

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        return _StackedTensors(self, geometry, generator)


class _StackedTensors(Parametrisation):
    """The tensors of one variant, and which slice of which is a site's update."""

    def __init__(self, method: TensLoRA, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__()
        assert method.ranks is not None
        self.method = method
        self.axes = method.tensor_axes(geometry)
        self.factorization = FACTORIZATIONS[method.factorization]
        self.tensors = nn.ModuleList(
            self.factorization.build(method.shape(geometry), method.ranks, method.init, generator)
            for _ in product(*map(range, self.axes.values()))
        )
        self.sites = [Site(layer, name) for layer in range(geometry.layers) for name in method.projections]
        self.down_of = {site: self._tensor_of(site) for site in self.sites}

    def _tensor_of(self, site: Site) -> int:
        """The index of the site's tensor: row-major over what is not stacked."""
        position = {"layer": site.layer, "projection": self.method.projections.index(site.projection)}
        index = 0
        for axis, size in self.axes.items():
            index = index * size + position[axis]
        return index

    def contract(self) -> Contracted:
        down, rest = self.factorization.contract(list(self.tensors))
        downs = list((down * self.method.scale).unbind())
        names = [*self.axes, *self.method.modes[1:], "rank"]
        rest = rest.unflatten(0, tuple(self.axes.values())) if self.axes else rest.squeeze(0)
        out = [name for name in names if name in ("output", "head_size", "head")]
        if self.method.heads == "aligned":
            out.reverse()
        rest = rest.permute([names.index(name) for name in ("layer", "projection", *out, "rank")])
        ups = rest.flatten(2, -2).flatten(0, 1).unbind()
        return Contracted(downs, dict(zip(self.sites, ups, strict=True)))
