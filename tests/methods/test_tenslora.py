"""Tests TensLoRA's updates against dense tensors, its starts, the paper's counts and its messages."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations, product
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorbench.methods import Geometry, UserError, create
from tensorbench.methods.adapter import Adapter
from tensorbench.methods.backbone import TARGETS
from tensorbench.methods.tenslora import VARIANTS, TensLoRA

from .oracle import BASE, SCALE, SMOLLM2, UNEQUAL, StackedOracle, Values, factors, stacked
from .toy import ToyBackbone, scatter

#: Geometries with more heads than channels per head, with fewer heads, and with modes of all different sizes.
GEOMETRIES = (Geometry(12, 4, 2, 48), Geometry(12, 2, 3, 48), Geometry(10, 5, 4, 40))

#: Combinations (variant, factorization, targets). Head modes and an MLP exclude each other, since MLPs have
#: no heads.
CONSTRUCTIONS = [
    (variant, factorization, targets)
    for variant, factorization, targets in product(VARIANTS, ("tucker", "cp", "tt"), TARGETS)
    if targets != "qkvo+mlp" or "att" not in variant
]


def started(method: TensLoRA, geometry: Geometry, seed: int = 0) -> Adapter:
    return method.attach(ToyBackbone(geometry), torch.Generator().manual_seed(seed))


def tensors(adapter: Any) -> list[Any]:
    return list(adapter.parametrisation.tensors)


def sized(variant: str, factorization: str = "tucker", **options: Any) -> TensLoRA:
    """A variant whose ranks all differ. Some of the ranks are larger than the smallest mode."""
    method = create("tenslora", variant=variant, factorization=factorization, **options)
    assert isinstance(method, TensLoRA)
    ranks = (4, 5, 3, 6, 2)[: len(method.rank_names)]
    return method.model_copy(update={"ranks": ranks})


# --- the update of a site, against a slow dense oracle ---


class TestTucker(StackedOracle):
    name = "tenslora"
    options = {"variant": "att_qkv_depth", "targets": "qkvo", "ranks": (3, 4, 2, 3, 2), "scale": SCALE}
    zero = "core"
    published = [
        ({"ranks": (4,) * 5, "targets": "qkv"}, SMOLLM2, 4 * (576 + 64 + 9 + 3 + 30) + 4**5),
        ({"variant": "att", "ranks": (4,) * 3, "targets": "qkv"}, SMOLLM2, 90 * (4 * (576 + 64 + 9) + 4**3)),
        # Four slices of the attention and three each of gate, fc1 and fc2.
        (
            {"variant": "qkv_depth", "ranks": (4,) * 4, "targets": "qkvo+mlp"},
            SMOLLM2,
            4 * (576 + 576 + 13 + 30) + 4**4,
        ),
        # Projection modes of 4 and of 12, and one tensor for each of 4 and of 12 slices.
        ({"variant": "qkv", "ranks": (4,) * 3}, BASE, 12 * (4 * (768 * 2 + 4) + 64)),
        (
            {"variant": "qkv_depth", "ranks": (4,) * 4, "targets": "qkvo+mlp"},
            BASE,
            4 * (768 * 2 + 12 + 12) + 256,
        ),
        (
            {"variant": "depth", "ranks": (4,) * 3, "targets": "qkvo+mlp"},
            BASE,
            12 * (4 * (768 * 2 + 12) + 64),
        ),
        ({"variant": "att", "ranks": (4,) * 3}, BASE, 48 * (4 * (768 + 64 + 12) + 64)),
    ]
    test_counts = None  # of several ranks: test_tenslora_ranks.py

    def tensors(self, values: Values) -> dict[str, Tensor]:
        """Builds the tensors by definition from the bare parameters.

        The modes of a train are in the order of its container.
        """
        names = list(dict.fromkeys(".".join(key.split(".")[:2]) for key in values))
        return {name: self.full(values.get(f"{name}.core"), factors(values, name)) for name in names}

    def full(self, core: Tensor | None, parts: list[Tensor]) -> Tensor:
        modes, bonds = "abcde"[: len(parts)], "uvwxyz"
        if core is not None:
            terms = [mode + bond for mode, bond in zip(modes, bonds, strict=False)]
            return torch.einsum(f"{bonds[: len(modes)]},{','.join(terms)}->{modes}", core, *parts)
        if parts[0].dim() == 2:
            return torch.einsum(f"{','.join(mode + 'u' for mode in modes)}->{modes}", *parts)
        terms = [bonds[k] + mode + bonds[k + 1] for k, mode in enumerate(modes)]
        return torch.einsum(f"{','.join(terms)}->{modes}", *parts)

    def slices(self, values: Values, geometry: Geometry) -> Callable[[int, str], list[Tensor]]:
        method: Any = self.method()
        stack = method.variant.split("_")
        modes = ["input", *(("head_size", "head") if "att" in stack else ("output",))]
        modes += [mode for mode, part in (("projection", "qkv"), ("layer", "depth")) if part in stack]
        every = list(self.tensors(values).values())
        if method.factorization == "tt":
            # A chain over input, layer, projection, head, output: the modes after the first in reverse.
            every = [tensor.permute(0, *range(tensor.dim() - 1, 0, -1)) for tensor in every]
        apart = [mode for mode in ("layer", "projection") if mode not in modes]
        full = torch.stack(every)
        if "layer" in apart:
            full = full.unflatten(0, (geometry.layers, -1))
            full = full if "projection" in apart else full.squeeze(1)
        elif not apart:
            full = full.squeeze(0)
        outputs = ["head", "head_size"] if method.heads == "aligned" else ["head_size", "head"]
        outputs = outputs if "att" in stack else ["output"]
        order = [[*apart, *modes].index(mode) for mode in ("layer", "projection", *outputs, "input")]
        full = method.scale * full.permute(order).flatten(2, -2)
        return stacked(full, geometry, *method.projections)

    def turned(self, geometry: Geometry) -> set[str]:
        """The output projection if the tensor has a head mode, since its heads are on the input side."""
        heads = "att" in self.options["variant"].split("_")
        return {"output"} if heads else super().turned(geometry)


class TestCP(TestTucker):
    options = {
        "variant": "qkv_depth",
        "targets": "qkvo+mlp",
        "factorization": "cp",
        "ranks": (3,),
        "scale": SCALE,
    }
    zero = "factor_0"
    # R · Σ n.
    published = [
        ({"variant": "qkv", "ranks": (7,), "targets": "qkv"}, BASE, 12 * 7 * (768 + 768 + 3)),
        ({"variant": "att_qkv_depth", "ranks": (4,), "targets": "qkv"}, BASE, 4 * (768 + 64 + 12 + 3 + 12)),
    ]


class TestTrain(TestTucker):
    options = {"variant": "depth", "factorization": "tt", "ranks": (3, 2), "scale": SCALE}
    zero = "factor_2"
    # Σ r₋ · n · r₊ over input, layer, projection, head, and head size or output.
    published = [
        ({"ranks": (4, 4)}, BASE, 3 * (768 * 4 + 4 * 12 * 4 + 4 * 768)),
        (
            {"variant": "att_qkv_depth", "ranks": (2, 3, 4, 5)},
            BASE,
            768 * 2 + 2 * 12 * 3 + 3 * 3 * 4 + 4 * 12 * 5 + 5 * 64,
        ),
    ]


@pytest.mark.parametrize(("variant", "factorization", "targets"), CONSTRUCTIONS)
def test_every_construction(variant: str, factorization: str, targets: str) -> None:
    for heads in ("aligned", "interleaved") if "att" in variant else ("aligned",):
        oracle = TestTucker()
        method = sized(variant, factorization, targets=targets, heads=heads, scale=0.7)
        oracle.options = method.model_dump()  # type: ignore[misc]
        for geometry in (*GEOMETRIES, *(UNEQUAL if heads == "aligned" else ())):
            oracle.check_updates(geometry)
        if heads == "aligned":
            oracle.test_shared_heads_may_be_cut()
        oracle.options = method.model_dump()  # type: ignore[misc]
        oracle.test_containers_hold_the_tensors()


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "att" in v])
def test_a_head_slice_touches_the_channels_of_its_head(variant: str) -> None:
    geometry, head = Geometry(12, 3, 2, 48), 1
    for heads, channels in (("aligned", {4, 5, 6, 7}), ("interleaved", {1, 4, 7, 10})):
        adapter = started(sized(variant, heads=heads, targets="qkvo"), geometry)
        scatter(adapter.named_parameters())
        with torch.no_grad():
            for container in tensors(adapter):
                for second in {0, 1, 2} - {head}:
                    container.factors[2][second] = 0
        for site, delta in adapter.deltas():
            touched = delta.abs().sum(0 if site.projection == "output" else 1).nonzero().flatten()
            assert set(touched.tolist()) == channels, (heads, site)


# --- start ---


@pytest.mark.parametrize("init", ["orthogonal", "normal", "kaiming_uniform"])
@pytest.mark.parametrize("factorization", ["tucker", "cp", "tt"])
def test_every_part_starts_by_init(factorization: str, init: str) -> None:
    method = create("tenslora", variant="qkv_depth", factorization=factorization, init=init).isorank(40)
    adapter = method.attach(ToyBackbone(Geometry(100, 4, 8, 400)), torch.Generator().manual_seed(0))
    (container,) = tensors(adapter)
    parts = [p.detach().flatten(0, -2) for p in container.parameters() if p.any()]
    assert len(parts) == (4 if factorization == "tucker" else 3)
    # Four modes: five parts and four ranks for Tucker, four and one for CP, four and three for a train.
    stds = {"tucker": (1 / 40**2) ** (1 / 5), "cp": (1 / 40**0.5) ** (1 / 4), "tt": (1 / 40**1.5) ** (1 / 4)}
    for part in parts:
        rows, columns = part.shape
        if init == "orthogonal":
            # A rank above its mode has orthonormal rows.
            gram = part.T @ part if rows >= columns else part @ part.T
            torch.testing.assert_close(gram, torch.eye(len(gram), dtype=part.dtype), rtol=0, atol=1e-5)
        elif init == "normal":
            assert abs(float(part.std()) / stds[factorization] - 1) < 0.15
        else:
            # As torch's linear layers: uniform within 1 / √fan-in.
            assert 0.9 / math.sqrt(columns) < float(part.abs().max()) <= 1 / math.sqrt(columns)


# --- counts ---


@pytest.mark.parametrize(
    ("variant", "count"),
    [
        ("att", 123_840),
        ("qkv", 74_640),
        ("depth", 18_768),
        ("att_qkv", 43_728),
        ("att_depth", 11_040),
        ("qkv_depth", 6_460),
        ("att_qkv_depth", 4_460),
    ],
)
def test_isorank_counts_of_the_paper(variant: str, count: int) -> None:
    assert create("tenslora", variant=variant).isorank(4).count(BASE) == count


# --- messages ---


def test_free_ranks_and_unfit_backbones_are_refused_before_anything_is_built() -> None:
    backbone = ToyBackbone(GEOMETRIES[0])
    with pytest.raises(UserError, match="ranks are free"):
        create("tenslora", variant="qkv").attach(backbone, torch.Generator())
    lacking = ToyBackbone(GEOMETRIES[0], projections=("query", "key"))
    with pytest.raises(UserError, match=r"value.*query, key"):
        sized("qkv").attach(lacking, torch.Generator())
    # Without a head mode, the option `heads` has no effect.
    shared = ToyBackbone(Geometry(12, 4, 2, 24, kv_heads=2))
    sized("qkv", heads="interleaved").attach(shared, torch.Generator()).detach()
    for untouched in (backbone, lacking, shared):
        assert all(parameter.requires_grad for parameter in untouched.module.parameters())


def test_the_order_of_heads_without_a_head_mode_keeps_the_id() -> None:
    for variant in VARIANTS:
        first, second = (sized(variant, heads=heads).identity() for heads in ("aligned", "interleaved"))
        assert (first == second) == ("att" not in variant)


# --- starts ---


@pytest.mark.parametrize("variant", ["att", "qkv", "depth", "att_depth"])
@pytest.mark.parametrize("init", ["orthogonal", "normal"])
def test_tensors_start_from_draws_of_their_own_or_all_from_the_same(variant: str, init: str) -> None:
    def factors(starts: str) -> list[Tensor]:
        adapter = started(sized(variant, init=init, starts=starts), GEOMETRIES[0])
        return [torch.cat([factor.flatten() for factor in tensor.factors]) for tensor in tensors(adapter)]

    own, same = factors("independent"), factors("identical")
    assert torch.equal(own[0], same[0])
    assert all(torch.equal(start, same[0]) for start in same)
    assert not any(torch.equal(first, second) for first, second in combinations(own, 2))


def test_starts_are_part_of_the_identity_only_where_they_change_something() -> None:
    first, two = (sized("att", starts=starts) for starts in ("independent", "identical"))
    assert "starts" not in first.identity()
    assert two.identity()["starts"] == "identical"
    assert two.label == "TensLoRA att (starts=identical)"
    # A single tensor has no other to share its start with.
    assert sized("qkv_depth", starts="identical").identity() == sized("qkv_depth").identity()
