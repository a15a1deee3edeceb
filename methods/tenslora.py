"""TensLoRA (arXiv 2509.19391): attention updates stacked into higher-order tensors.

The query, key and value updates, each (d, d), are stacked over heads ("att"), projections ("qkv") and layers
("depth"), in the seven combinations of the paper. Every stack is a tensor, and every tensor is factorised.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from tensorbench.methods.backbone import MLP, TARGETS, Geometry, Targets
from tensorbench.methods.errors import UserError, too_small
from tensorbench.methods.factorizations import FACTORIZATIONS, Init
from tensorbench.methods.lowrank import Contracted, Parametrisation, StackedMethod
from tensorbench.methods.sizes import Ranks, check_ranks, nearest, nearest_rank
from tensorbench.methods.slices import CUT_INPUTS, cut_sites, turned

Variant = Literal["att", "qkv", "depth", "att_qkv", "att_depth", "qkv_depth", "att_qkv_depth"]
VARIANTS: tuple[Variant, ...] = Variant.__args__  # type: ignore[attr-defined]


class TensLoRA(StackedMethod):
    """One of the seven variants: y = W·x + b + scale · ΔW·x, where ΔW is a slice of a factorised tensor.

    One parameter of each tensor starts at zero: the core of a Tucker tensor, the input factor of a CP tensor,
    the last core of a tensor train. So ΔW starts at zero, and the first step changes only this parameter.
    """

    name: ClassVar[str] = "tenslora"
    titled: ClassVar[frozenset[str]] = frozenset({"variant", "ranks"})
    #: The learning rate of the reference code for all tasks.
    published_lr: ClassVar[float | None] = 5e-4

    #: The stacked axes: heads (att), projections (qkv), layers (depth), or a combination.
    variant: Variant
    #: Tucker: one rank per mode, in the order of `modes`. CP: a single rank. Tensor train: one per bond.
    #: None: a budget sets the ranks. `{layer: 1}` fixes the rank of a mode and leaves the others to the
    #: budget. `{layer: 0.5}` fixes it at half of the mode's largest useful rank, and `{input: 1.5x}` at 1.5
    #: times the rank that the budget would set.
    ranks: Ranks = None
    #: `cp` and `tt` (tensor train) are not in the paper's results.
    factorization: Literal["tucker", "cp", "tt"] = "tucker"
    #: The paper adapts query, key and value. `qkvo+mlp` cuts the MLP's projections into (d, d) slices.
    targets: Targets = "qkv"
    #: The position of channel j of a head among all output channels. `aligned`: head · head size + j, so
    #: that slices are the backbone's real heads. `interleaved`: j · heads + head, as in the reference code,
    #: so that each slice spans all heads.
    heads: Literal["aligned", "interleaved"] = "aligned"
    #: The initial values of the factors and cores that do not start at zero (see
    #: `tensorbench.methods.factorizations.fill`).
    init: Init = "orthogonal"
    #: `independent`: each tensor has its own random initial values. `identical`: all tensors have the same
    #: values, as in the reference code, which sets the same seed before each tensor.
    starts: Literal["independent", "identical"] = "independent"

    @classmethod
    def presets(cls) -> tuple[Self, ...]:
        """Returns presets that cover all factorisations and choices of targets, with and without heads."""
        constructions = (
            {"variant": "att_qkv_depth", "factorization": "tucker", "targets": "qkv"},
            {"variant": "qkv_depth", "factorization": "cp", "targets": "qkvo+mlp"},
            {"variant": "att_depth", "factorization": "tt", "targets": "qkvo"},
        )
        return tuple(cls.model_validate(construction) for construction in constructions)

    @classmethod
    def listed(cls) -> tuple[Self, ...]:
        """Returns the seven variants of the paper."""
        return tuple(cls.model_validate({"variant": variant}) for variant in VARIANTS)

    @model_validator(mode="after")
    def _options_fit_together(self) -> Self:
        if self.targets == "qkvo+mlp" and "head" in self.modes:
            raise ValueError(f"targets: an MLP has no heads, so variant '{self.variant}' cannot adapt it")
        names = self.rank_names
        takes = f"variant '{self.variant}' as {self.factorization} takes {len(names)} ({', '.join(names)})"
        if isinstance(self.ranks, Mapping):
            if unknown := [name for name in self.ranks if name not in names]:
                raise ValueError(f"ranks: {takes}, got {', '.join(unknown)}")
            if len(self.ranks) == len(names):
                raise ValueError(f"ranks: {takes}; a mapping leaves some to the budget: list all of them")
        elif self.ranks is not None and len(self.ranks) != len(names):
            raise ValueError(f"ranks: {takes}, got {len(self.ranks)}: {self.ranks}")
        return self

    @property
    def projections(self) -> tuple[str, ...]:
        return TARGETS[self.targets]

    @property
    def has_core(self) -> bool:  # type: ignore[override]
        return self.factorization == "tucker"

    @property
    def rank_names(self) -> tuple[str, ...]:
        return FACTORIZATIONS[self.factorization].rank_names(self.modes)

    @property
    def size(self) -> tuple[int, ...] | None:
        return None if isinstance(self.ranks, Mapping) else self.ranks

    @property
    def title(self) -> str:
        return f"TensLoRA {self.variant}"

    @property
    def idle(self) -> set[str]:
        """The options without effect: `heads` without a head mode, and `starts` with a single tensor."""
        idle = set()
        if "head" not in self.modes:
            idle.add("heads")
        if {"projection", "layer"} <= set(self.modes):
            idle.add("starts")
        return idle

    @property
    def modes(self) -> tuple[str, ...]:
        """The names of the tensor's modes: input, output (or head_size and head), projection, layer.

        The variant decides which of these the tensor has.
        """
        stacked = self.variant.split("_")
        outputs = ("head_size", "head") if "att" in stacked else ("output",)
        projection = ("projection",) if "qkv" in stacked else ()
        layer = ("layer",) if "depth" in stacked else ()
        return ("input", *outputs, *projection, *layer)

    def check(self, geometry: Geometry, projections: tuple[str, ...]) -> None:
        super().check(geometry, projections)
        shared = geometry.kv_heads != geometry.heads and {"key", "value"} & set(self.projections)
        if shared and "head" in self.modes and self.heads == "interleaved":
            raise UserError(
                f"{self.label}: heads: interleaved slices are spread over all heads, but here query heads "
                f"share those of key and value ({geometry}); accepted is aligned"
            )

    def _sizes(self, geometry: Geometry) -> dict[str, int]:
        slices = self.slices(geometry)
        return {
            "input": geometry.hidden,
            "output": slices.width,
            "head_size": geometry.head_size,
            "head": geometry.heads,
            "projection": len(slices),
            "layer": geometry.layers,
        }

    def shape(self, geometry: Geometry) -> tuple[int, ...]:
        """Returns the size of every mode."""
        sizes = self._sizes(geometry)
        return tuple(sizes[mode] for mode in self.modes)

    def tensor_axes(self, geometry: Geometry) -> dict[str, int]:
        """Returns the sizes of the axes that the variant does not stack, among `layer` and `projection`.

        There is one tensor for each combination of indices along the returned axes.
        """
        sizes = self._sizes(geometry)
        return {axis: sizes[axis] for axis in ("layer", "projection") if axis not in self.modes}

    def count(self, geometry: Geometry) -> int:
        """Counts the parameters of one tensor, multiplied by the number of tensors.

        One tensor has Σ r·n + Π r parameters for Tucker, R·Σ n for CP, and Σ r₋·n·r₊ for a tensor train.
        Raises UserError while the ranks are free.
        """
        return self._count_with(geometry, self.resolved_ranks)

    @property
    def resolved_ranks(self) -> tuple[int, ...]:
        """The ranks. Raises UserError while they are free."""
        if self.size is None:
            raise UserError(f"{self.label}: ranks are free; give them, or a budget")
        return self.size

    def _count_with(self, geometry: Geometry, ranks: tuple[int, ...]) -> int:
        tensors = math.prod(self.tensor_axes(geometry).values())
        return tensors * FACTORIZATIONS[self.factorization].count(self.shape(geometry), ranks)

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Returns ranks that suffice for every tensor of this shape.

        For Tucker, the rank is the size of each mode. For CP, it is the product of all modes but the largest.
        For a tensor train, it is the product of the modes left or right of each bond, whichever is smaller.
        """
        return FACTORIZATIONS[self.factorization].rank_limits(self.shape(geometry))

    def isorank(self, rank: int) -> Self:
        if isinstance(self.ranks, Mapping):
            raise UserError(f"{self.label}: ranks given in part need a budget of parameters, not of ranks")
        return self.with_size((rank,) * len(self.rank_names))

    def with_size(self, ranks: Sequence[int]) -> Self:
        checked = check_ranks(self.label, ranks)
        if len(checked) != len(self.rank_names):
            raise UserError(f"{self.label}: takes {len(self.rank_names)} ranks (got {len(checked)})")
        return self.model_copy(update={"ranks": checked})

    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        """Returns the same variant with the ranks for the budget (see `tucker_ranks` and `even_ranks`).

        Ranks that are set by name stay unchanged. With `uneven`, r(input) may be one above r(output) in a
        Tucker tensor without a head mode, and the first ranks of a tensor train may be one above its other
        ranks. Raises UserError if the budget is exceeded even when all other ranks are 1, and if a rank that
        is set by name is larger than useful.
        """
        fixed = self._fixed(geometry, budget, uneven)

        def count(ranks: tuple[int, ...]) -> int:
            return self._count_with(geometry, ranks)

        smallest = count(tuple(fixed.get(name, 1) for name in self.rank_names))
        if smallest > budget:
            raise too_small(self.label, budget, smallest, f" with every {'other ' * bool(fixed)}rank 1")
        if self.factorization == "tucker":
            sizes = dict(zip(self.modes, self.shape(geometry), strict=True))
            return self.with_size(tucker_ranks(sizes, count, budget, uneven=uneven, fixed=fixed))
        return self.with_size(even_ranks(self.rank_names, count, budget, uneven=uneven, fixed=fixed))

    def _fixed(self, geometry: Geometry, budget: int, uneven: bool) -> dict[str, int]:
        """Returns the ranks that are set by name. Raises UserError for a rank that is larger than useful."""
        if not isinstance(self.ranks, Mapping):
            return {}
        limits = dict(zip(self.rank_names, self.rank_limits(geometry), strict=True))
        alone: tuple[int, ...] = ()
        plain = {name: given for name, given in self.ranks.items() if not isinstance(given, str)}
        if plain.keys() < self.ranks.keys():
            without = self.model_copy(update={"ranks": plain or None})
            alone = without.fit(geometry, budget, uneven=uneven).resolved_ranks
        fixed: dict[str, int] = {}
        for name, given in self.ranks.items():
            limit = limits[name]
            assert limit is not None
            if isinstance(given, str):
                given = max(1, round(float(given[:-1]) * alone[self.rank_names.index(name)]))
            fixed[name] = int(given) if given >= 1 else max(1, round(given * limit))
            if fixed[name] > limit:
                raise UserError(
                    f"{self.label}: rank of {name} is {fixed[name]:,}, accepted is at most {limit:,}: more "
                    f"gains nothing on a backbone of {geometry}"
                )
        return fixed

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        return _StackedTensors(self, geometry, generator)


#: The largest ratio of the input's rank to the head size's rank, for tensors with a head mode. For these,
#: many pairs of ranks come near a budget, and the nearest pair can be degenerate. So the ratio has to be
#: above 1 and at most this number.
LARGEST_RATIO = 5


def even_ranks(
    bonds: Sequence[str],
    count: Callable[[tuple[int, ...]], int],
    budget: int,
    *,
    uneven: bool,
    fixed: Mapping[str, int],
) -> tuple[int, ...]:
    """Returns the equal ranks whose count is nearest to the budget, for CP and tensor trains.

    The paper has no results for these. With `uneven`, the first bonds may have a rank that is one larger than
    the rank of the others. Bonds in `fixed` keep their ranks.
    """

    def ranks(rank: int, raised: int = 0) -> tuple[int, ...]:
        return tuple(fixed.get(name, rank + (place < raised)) for place, name in enumerate(bonds))

    rank = nearest_rank(lambda r: count(ranks(r)), budget)
    steps = range(1, len(bonds)) if uneven else ()
    bent = [ranks(r, raised) for r in (rank - 1, rank) if r for raised in steps]
    return nearest([ranks(rank), *bent], count, budget)


def tucker_ranks(
    sizes: Mapping[str, int],
    count: Callable[[tuple[int, ...]], int],
    budget: int,
    *,
    uneven: bool,
    fixed: Mapping[str, int],
) -> tuple[int, ...]:
    """Returns the ranks whose count is nearest to the budget, among those that the paper's heuristic allows.

    `sizes` has the size of each mode. Equal modes have equal ranks, and larger modes have larger ranks. The
    head, projection and layer modes have full ranks. If these exceed the budget even with the smallest other
    ranks, they are capped: at the largest number that fits, or else at 1. With `uneven`, r(input) may be one
    above r(output), unless there is a head mode.

    Modes in `fixed` keep their ranks. If the input or the output is in `fixed`, the rank of the other mode
    need not be equal or near to its rank.
    """
    heads = "head_size" in sizes
    cap = max(size for mode, size in sizes.items() if mode in ("head", "projection", "layer"))

    def ranks(wide: int, narrow: int) -> tuple[int, ...]:
        chosen = {"input": wide, "output": narrow, "head_size": narrow, **fixed}
        return tuple(chosen.get(mode) or min(size, cap) for mode, size in sizes.items())

    def nearest_wide(narrow: int) -> int:
        low, high = (min(rank, sizes["input"]) for rank in (narrow + 1, LARGEST_RATIO * narrow))
        return nearest_rank(lambda wide: count(ranks(wide, narrow)), budget, low, high)

    ends = ("input", "head_size" if heads else "output")
    # If heads are a mode, the smallest pair that the rule allows is (2, 1).
    least = 2 if heads and not fixed.keys() & ends else 1
    while cap > 1 and count(ranks(least, 1)) > budget:
        cap -= 1
    if fixed.keys() & ends:
        free = [sizes[mode] for mode in ends if mode not in fixed]
        rank = nearest_rank(lambda r: count(ranks(r, r)), budget, high=max(free, default=1))
        pairs = [(rank, rank)]
    elif heads:
        # If even a cap of 1 exceeds the budget, no smaller ranks are left.
        pairs = [(1, 1)] if cap == 1 else []
        for narrow in range(1, sizes["head_size"] + 1):
            if narrow > 1 and count(ranks(narrow, narrow - 1)) > budget:
                break
            pairs.append((nearest_wide(narrow), narrow))
    else:
        size = min(sizes["input"], sizes["output"])
        rank = nearest_rank(lambda r: count(ranks(r, r)), budget, high=size)
        pairs = [(rank, rank)]
        if uneven:
            pairs += [(r + 1, r) for r in (rank - 1, rank) if 1 <= r < size]
    return nearest((ranks(wide, narrow) for wide, narrow in pairs), count, budget)


class _StackedTensors(Parametrisation):
    """The tensors of one variant, and the slices that form each site's update.

    The input factor of a tensor is the down factor of all sites with slices from this tensor alone. A site
    has a down factor of its own if its slices come from several tensors, or if it uses its slice transposed.
    In `Contracted.downs`, the sites' own down factors come after the shared ones.
    """

    def __init__(self, method: TensLoRA, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__()
        self.method = method
        self.geometry = geometry
        self.axes = method.tensor_axes(geometry)
        self.factorization = FACTORIZATIONS[method.factorization]
        shape, ranks = method.shape(geometry), method.resolved_ranks
        drawn = generator.get_state()
        self.tensors = nn.ModuleList()
        for _ in range(math.prod(self.axes.values())):
            if method.starts == "identical":
                generator.set_state(drawn)
            self.tensors.append(self.factorization.build(shape, ranks, method.init, generator))
        sites, layer_slices = geometry.sites(method.projections), method.slices(geometry)
        #: The positions of each site's slices in a layer's stack.
        self._positions = {site: layer_slices.positions(site.projection) for site in sites}
        # The index of a slice's tensor, by layer and position, in row-major order over `axes`.
        grid = torch.arange(len(self.tensors)).view(self.axes.get("layer", 1), self.axes.get("projection", 1))
        tensor_of = grid.expand(geometry.layers, len(layer_slices)).tolist()
        self._sources = {
            site: [tensor_of[site.layer][position] for position in positions]
            for site, positions in self._positions.items()
        }
        #: The sites that use their slices transposed: all output projections, or none. Their heads are on the
        #: input side.
        turns = "head" in method.modes or turned(geometry)
        self._turned = {site for site in sites if site.projection == "output" and turns}
        own = itertools.count(len(self.tensors))
        self.down_of = {
            site: next(own) if site in self._turned or len(set(sources)) > 1 else sources[0]
            for site, sources in self._sources.items()
        }
        #: The sites that share a down factor with other sites.
        self._sharing = {site for site, down in self.down_of.items() if down < len(self.tensors)}
        self.input_slices = cut_sites(self._sharing, geometry, CUT_INPUTS)

    def contract(self) -> Contracted:
        down, rest = self.factorization.contract(list(self.tensors))
        downs = list((down * self.method.scale).unbind())
        slices = [layer.unbind() for layer in self._by_slice(rest).unbind()]
        ups = {}
        for site, positions in self._positions.items():
            parts = [slices[site.layer][position] for position in positions]
            inputs = [downs[source] for source in self._sources[site]]
            columns = self.geometry.shape(site.projection)[1]
            if site.projection in MLP:
                parts = [part[: self.geometry.hidden] for part in parts]
            # fc2 is sliced along its input, and each slice has its own columns in `up`.
            cut_input = site.projection in CUT_INPUTS
            if site in self._turned:
                ups[site] = inputs[0].T
                downs.append(parts[0].T[:, :columns])
            elif site in self._sharing:
                ups[site] = parts[0] if len(parts) == 1 else torch.cat(parts, int(cut_input))
            elif cut_input:
                ups[site] = torch.cat(parts, 1)
                downs.append(torch.block_diag(*inputs)[:, :columns])
            else:
                ups[site] = torch.block_diag(*parts)
                downs.append(torch.cat(inputs))
        return Contracted(downs, ups)

    def _by_slice(self, rest: Tensor) -> Tensor:
        """Reshapes `rest`, the product of everything but the input factor, to (layer, slice, out, r)."""
        names = [*self.axes, *self.method.modes[1:], "rank"]
        rest = rest.unflatten(0, tuple(self.axes.values())) if self.axes else rest.squeeze(0)
        out = [name for name in names if name in ("output", "head_size", "head")]
        if self.method.heads == "aligned":
            out.reverse()
        rest = rest.permute([names.index(name) for name in ("layer", "projection", *out, "rank")])
        return rest.flatten(2, -2)
