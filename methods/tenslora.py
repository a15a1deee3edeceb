"""TensLoRA: attention updates stacked into higher-order tensors (arXiv 2509.19391).

The query, key and value updates, each (d, d), are stacked over heads ("att"), projections ("qkv")
and layers ("depth") in the seven combinations of the paper, and every stack is factorised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from methods.backbone import MLP_SLICES, TARGETS, Geometry, Site, Targets
from methods.errors import UserError
from methods.factorizations import FACTORIZATIONS, Init
from methods.lowrank import Contracted, LowRankMethod, Parametrisation
from methods.ranks import nearest, nearest_rank, too_small
from methods.validation import Later

Variant = Literal["att", "qkv", "depth", "att_qkv", "att_depth", "qkv_depth", "att_qkv_depth"]
VARIANTS: tuple[Variant, ...] = Variant.__args__  # type: ignore[attr-defined]

#: The heuristic's bound on (rank of the d-sized mode) / (rank of the head-size mode).
LARGEST_RATIO = 5

CountRanks = Callable[[tuple[int, ...]], int]


class TensLoRA(LowRankMethod):
    """One of the seven variants. y = W·x + b + scale · ΔW·x, ΔW a slice of a factorised tensor.

    One of the tensor's parts starts at zero (Tucker: the core), so ΔW = 0 and the first step moves only it.
    """

    name: ClassVar[str] = "tenslora"
    titled: ClassVar[frozenset[str]] = frozenset({"variant", "ranks"})

    #: What is stacked: heads (att), projections (qkv), layers (depth), or a combination.
    variant: Variant
    #: Tucker: one rank for each of `modes`, in their order. CP: one. Tensor train: one for each bond.
    #: None: set by a budget.
    ranks: tuple[PositiveInt, ...] | None = None
    #: `cp` and `tt` (tensor train) are not in the paper's results.
    factorization: Literal["tucker", "cp", "tt"] = "tucker"
    #: The paper's are query, key and value. `qkvo+mlp` cuts fc1 and fc2 into four (d, d) slices each.
    targets: Targets = "qkv"
    #: `aligned`: output channel = head · head size + j, the backbone's real heads. `interleaved`:
    #: j · heads + head, as the reference code unfolds it, so that a slice is spread over all heads.
    heads: Literal["aligned", "interleaved"] = "aligned"
    #: How what does not start at zero starts.
    init: Init = Field("orthogonal")
    #: Whether tensors start from draws of their own, or all from the same ones, as in the reference code,
    #: which seeds anew for each.
    starts: Annotated[Literal["independent", "identical"], Later()] = "independent"

    @classmethod
    def presets(cls) -> tuple[Self, ...]:
        """Every factorisation and every set of targets, on variants with and without a head mode."""
        constructions = (
            {"variant": "att_qkv_depth", "factorization": "tucker", "targets": "qkv"},
            {"variant": "qkv_depth", "factorization": "cp", "targets": "qkvo+mlp"},
            {"variant": "att_depth", "factorization": "tt", "targets": "qkvo"},
        )
        return tuple(cls.model_validate(construction) for construction in constructions)

    @classmethod
    def listed(cls) -> tuple[Self, ...]:
        """The paper's seven."""
        return tuple(cls.model_validate({"variant": variant}) for variant in VARIANTS)

    @model_validator(mode="after")
    def _options_fit_together(self) -> Self:
        if self.targets == "qkvo+mlp" and "head" in self.modes:
            raise ValueError(
                f"targets: an MLP has no heads, so that variant '{self.variant}' cannot adapt it"
            )
        names = self.rank_names
        if self.ranks is not None and len(self.ranks) != len(names):
            raise ValueError(
                f"ranks: variant '{self.variant}' as {self.factorization} takes {len(names)} "
                f"({', '.join(names)}), got {len(self.ranks)}: {self.ranks}"
            )
        return self

    @property
    def projections(self) -> tuple[str, ...]:
        return TARGETS[self.targets]

    @property
    def slices(self) -> tuple[str, ...]:
        """The projection of every (d, d) slice, in the order of the projection mode."""
        return tuple(name for name in self.projections for _ in range(MLP_SLICES if "fc" in name else 1))

    @property
    def rank_names(self) -> tuple[str, ...]:
        return FACTORIZATIONS[self.factorization].rank_names(self.modes)

    @property
    def size(self) -> tuple[int, ...] | None:
        return self.ranks

    @property
    def title(self) -> str:
        return f"TensLoRA {self.variant}"

    @property
    def idle(self) -> set[str]:
        """The order of heads where they are no mode, and `starts` where there is but one tensor to start."""
        idle = set() if "head" in self.modes else {"heads"}
        return idle | {"starts"} if {"projection", "layer"} <= set(self.modes) else idle

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
            "projection": len(self.slices),
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
        """(number of tensors) · (Σ r·n + Π r) for Tucker, R·Σ n for CP, Σ r₋·n·r₊ for tensor train.

        Raises UserError for free ranks, and for MLP targets where the MLP is not four times as wide.
        """
        if self.ranks is None:
            raise UserError(f"{self.label}: ranks are free; give them, or a budget")
        return self._count_with(geometry, self.ranks)

    def _count_with(self, geometry: Geometry, ranks: tuple[int, ...]) -> int:
        if "fc1" in self.projections:
            geometry.check_mlp_slices(self.title)
        tensors = math.prod(self.tensor_axes(geometry).values())
        return tensors * FACTORIZATIONS[self.factorization].count(self.shape(geometry), ranks)

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Tucker: a mode's size. Tensor train: what the modes on the smaller side of a bond multiply to."""
        return FACTORIZATIONS[self.factorization].rank_limits(self.shape(geometry))

    def isorank(self, rank: int) -> Self:
        return self.with_size((rank,) * len(self.rank_names))

    def with_size(self, ranks: Sequence[int]) -> Self:
        return self.model_copy(update={"ranks": tuple(ranks)})

    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        """The paper's heuristic: head, projection and layer modes keep their full rank, equal modes
        share a rank, larger modes get larger ranks.

        Where heads are a mode, many rank pairs come near the budget and the very nearest can be
        degenerate; only those with 1 < r(input) / r(head_size) ≤ 5 count. Where the full small modes
        alone exceed the budget, they are capped as little as needed, at last all ranks to 1. `uneven` lets
        r(input) be one above r(output). CP and tensor trains have one rank throughout; `uneven` lets a
        train's first bonds be one larger.
        """
        shape = self.shape(geometry)

        def count(ranks: tuple[int, ...]) -> int:
            return self._count_with(geometry, ranks)

        bonds = len(self.rank_names)
        smallest = count((1,) * bonds)
        if smallest > budget:
            raise too_small(self.label, budget, smallest)
        if self.factorization != "tucker":
            rank = nearest_rank(lambda r: count((r,) * bonds), budget)
            even = [(rank,) * bonds]
            steps = range(1, bonds) if uneven else ()
            bent = [(r + 1,) * k + (r,) * (bonds - k) for r in (rank - 1, rank) if r for k in steps]
            return self.model_copy(update={"ranks": nearest(even + bent, count, budget)})
        small = dict(zip(self.modes, shape, strict=True))
        cap = max(geometry.heads, geometry.layers, len(self.slices))
        # Where heads are a mode, the rule has no pair below 2, 1.
        wide = 2 if "head_size" in small else 1
        while cap > 1 and count(self._expand(small, wide, 1, cap)) > budget:
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
        if cap == 1:
            # Nothing smaller is left.
            yield 1, 1
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
    """The tensors of one variant, and which slices of which are a site's update."""

    def __init__(self, method: TensLoRA, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__()
        assert method.ranks is not None
        self.method = method
        self.axes = method.tensor_axes(geometry)
        self.factorization = FACTORIZATIONS[method.factorization]
        drawn = generator.get_state()
        self.tensors = nn.ModuleList()
        for _ in product(*map(range, self.axes.values())):
            if method.starts == "identical":
                generator.set_state(drawn)
            tensor = self.factorization.build(method.shape(geometry), method.ranks, method.init, generator)
            self.tensors.append(tensor)
        self.down_of = {}
        #: Per site, the slices of the projection mode; per extra `down`, its site.
        self._slices: dict[Site, range] = {}
        self._own_down: list[Site] = []
        self.input_slices = {}
        for layer, name in product(range(geometry.layers), method.projections):
            site = Site(layer, name)
            first = method.slices.index(name)
            self._slices[site] = range(first, first + method.slices.count(name))
            tensors = self._tensors_of(site)
            if self._transposed(site) or len(set(tensors)) > 1:
                self.down_of[site] = len(self.tensors) + len(self._own_down)
                self._own_down.append(site)
            else:
                self.down_of[site] = tensors[0]
                if name == "fc2":
                    self.input_slices[site] = MLP_SLICES

    def _transposed(self, site: Site) -> bool:
        """The heads of the output projection lie on its input, so there the d-sized mode is the output."""
        return site.projection == "output" and "head" in self.method.modes

    def _tensors_of(self, site: Site) -> list[int]:
        """The tensor of each of the site's slices: row-major over what is not stacked."""
        indices = []
        for slice_ in self._slices[site]:
            position = {"layer": site.layer, "projection": slice_}
            index = 0
            for axis, size in self.axes.items():
                index = index * size + position[axis]
            indices.append(index)
        return indices

    def contract(self) -> Contracted:
        down, rest = self.factorization.contract(list(self.tensors))
        downs = list((down * self.method.scale).unbind())
        slices = [layer.unbind() for layer in self._by_slice(rest).unbind()]
        ups = {}
        for site, chosen in self._slices.items():
            parts = [slices[site.layer][i] for i in chosen]
            own = [downs[i] for i in self._tensors_of(site)]
            if self._transposed(site):
                ups[site] = own[0].T
                downs.append(parts[0].T)
            elif site.projection == "fc2":
                # Side by side on the input: each slice of the input has its own columns of `up`.
                ups[site] = torch.cat(parts, 1)
                if self.down_of[site] >= len(self.tensors):
                    downs.append(torch.block_diag(*own))
            elif self.down_of[site] >= len(self.tensors):
                ups[site] = torch.block_diag(*parts)
                downs.append(torch.cat(own))
            else:
                ups[site] = parts[0] if len(parts) == 1 else torch.cat(parts)
        return Contracted(downs, ups)

    def _by_slice(self, rest: Tensor) -> Tensor:
        """What is left beside the input factor, as (layer, slice, out, r)."""
        names = [*self.axes, *self.method.modes[1:], "rank"]
        rest = rest.unflatten(0, tuple(self.axes.values())) if self.axes else rest.squeeze(0)
        out = [name for name in names if name in ("output", "head_size", "head")]
        if self.method.heads == "aligned":
            out.reverse()
        rest = rest.permute([names.index(name) for name in ("layer", "projection", *out, "rank")])
        return rest.flatten(2, -2)
