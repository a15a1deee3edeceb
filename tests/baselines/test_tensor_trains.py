"""The per-site and shared tensor methods against naive reconstructions, and their published counts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import methods
from methods import Geometry, NotLowRank, Site, UserError, create

from . import tensor_trains as naive
from .dense import BASE, TOLERANCE, SmallBackbone, check_twenty_steps, copied, inputs

#: Two layers, and a hidden size of four prime factors.
GEOMETRY = Geometry(24, 4, 2, 96)
LARGE, LLAMA = Geometry(1024, 16, 24, 4096), Geometry(4096, 32, 32, 11008)

Oracle = Callable[[dict[str, Tensor], Geometry], dict[Site, Tensor]]

LINEAR: dict[str, tuple[str, dict[str, Any], Oracle]] = {
    "loretta_rep": ("loretta_rep", {"rank": 3, "dropout": 0.0}, naive.loretta_rep),
    "tt_lora": ("tt_lora", {"rank": 3}, naive.tt_lora),
    "tt_lora reconstruction": (
        "tt_lora",
        {"rank": 3, "form": "reconstruction"},
        lambda values, geometry: naive.tt_lora(values, geometry, form="reconstruction"),
    ),
    "metatt 4d": ("metatt", {"rank": 3}, naive.metatt),
    "metatt 5d": ("metatt", {"rank": 3, "modes": "5d"}, naive.metatt),
    "trac": ("trac", {"rank": 3, "dropout": 0.0}, naive.trac),
    "lora_xs": ("lora_xs", {"rank": 3, "targets": "qv"}, naive.lora_xs),
    "lora_xs random": ("lora_xs", {"rank": 3, "targets": "qv", "basis": "random"}, naive.lora_xs),
    "cp": ("cp", {"rank": 3}, naive.cp),
    "quanta": ("quanta", {"axes": (4, 3, 2)}, naive.quanta),
    "dota": ("dota", {"rank": 3}, naive.dota),
}


def values(adapter: Any) -> dict[str, Tensor]:
    return {**adapter.named_parameters(), **adapter.frozen()}


def attached(name: str, options: dict[str, Any]) -> tuple[SmallBackbone, Any]:
    """In float64, from the published start, which is left by noise so that no update is zero."""
    backbone = SmallBackbone(GEOMETRY)
    adapter = create(name, **options).attach(backbone, torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.named_parameters().values():
            parameter += 0.2 * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
    return backbone, adapter


@pytest.mark.parametrize("case", LINEAR)
def test_twenty_steps_as_the_naive_reconstruction(case: str) -> None:
    """Deltas, and 20 steps of AdamW on frozen weights plus what einsum and tensorly make of parameters."""
    name, options, oracle = LINEAR[case]
    backbone, adapter = attached(name, options)
    for site, update in oracle(values(adapter), GEOMETRY).items():
        assert update.norm() > 1e-2
        torch.testing.assert_close(adapter.delta(site), update, **TOLERANCE)
    plain = SmallBackbone(GEOMETRY)
    frozen = {key: tensor.detach() for key, tensor in plain.module.named_parameters()}
    own = copied(adapter)

    def forward(x: Tensor) -> Tensor:
        dense = oracle({**own, **adapter.frozen()}, GEOMETRY)
        weights = {f"{plain.path(site)}.weight": update for site, update in dense.items()}
        changed = {key: frozen[key] + update for key, update in weights.items()}
        logits: Tensor = functional_call(plain.module, {**frozen, **changed}, (x,))
        return logits

    check_twenty_steps(backbone, adapter, own, forward)


def test_twenty_steps_of_the_bottleneck() -> None:
    backbone, adapter = attached("loretta_adp", {"rank": 2, "width": 4})
    plain = SmallBackbone(GEOMETRY)
    own = copied(adapter)
    for parameter in plain.module.parameters():
        parameter.requires_grad_(False)
    for site in adapter.bases:
        layer = plain.module.get_submodule(plain.path(site))
        layer.register_forward_hook(lambda _, __, y, site=site: y + naive.bottleneck(own, site, y))
    check_twenty_steps(backbone, adapter, own, plain.module)
    with pytest.raises(NotLowRank, match="not linear"):
        adapter.factors()
    with pytest.raises(UserError, match=r"LoRETTA-adp .*cannot be merged: its bottleneck is not linear"):
        adapter.merge()


QKV = {"targets": "qkv"}


@pytest.mark.parametrize(
    ("name", "options", "geometry", "counted"),
    [
        ("loretta_rep", {"rank": 5}, BASE, 27_840),
        ("loretta_rep", {"rank": 5, **QKV}, BASE, 41_760),
        ("loretta_rep", {"rank": 12, **QKV}, BASE, 221_184),
        ("loretta_rep", {"rank": 5}, LARGE, 61_440),
        ("loretta_rep", {"rank": 5}, LLAMA, 102_400),
        ("loretta_rep", {"rank": 8}, LLAMA, 249_856),
        ("loretta_adp", {"rank": 5}, BASE, 57_408),
        ("loretta_adp", {"rank": 8}, BASE, 112_128),
        ("loretta_adp", {"rank": 8}, LLAMA, 64 * 9_600),
        ("tt_lora", {"rank": 5}, BASE, 23_760),
        ("tt_lora", {"rank": 16, **QKV}, BASE, 202_752),
        ("tt_lora", {"rank": 17, **QKV}, BASE, 223_992),
        ("tt_lora", {"rank": 21}, BASE, 212_688),
        ("metatt", {"rank": 8, **QKV}, BASE, 13_248),
        ("metatt", {"rank": 16, **QKV}, BASE, 28_416),
        ("metatt", {"rank": 80, **QKV}, BASE, 218_880),
        ("metatt", {"rank": 8}, BASE, 13_184),
        ("metatt", {"rank": 8, "modes": "5d", **QKV}, BASE, 8_384),
        ("metatt", {"rank": 76, "modes": "5d", **QKV}, BASE, 219_184),
        ("trac", {"rank": 16}, BASE, 26_304),
        ("trac", {"rank": 8, **QKV}, BASE, 25_632),
        ("trac", {"rank": 16, **QKV}, BASE, 39_456),
        ("trac", {"rank": 121, **QKV}, BASE, 220_896),
        ("trac", {"rank": 16}, LLAMA, 106_496),
        ("lora_xs", {"rank": 4, **QKV}, BASE, 576),
        ("lora_xs", {"rank": 78, **QKV}, BASE, 219_024),
        ("quanta", {"axes": (16, 8, 8, 4)}, LLAMA, 2_752_512),
        ("quanta", {"axes": (8, 6, 4, 4), **QKV}, BASE, 207_360),
        ("quanta", {"axes": (8, 8, 4, 3), **QKV}, BASE, 267_840),
        ("quanta", {"axes": (8, 8, 3, 2, 2), **QKV}, BASE, 228_960),
        ("quanta", {"axes": (8, 8, 4, 4)}, LARGE, 48 * 8_448),
        ("cp", {"rank": 1}, Geometry(2048, 32, 24, 8192), 48 * 193),
    ],
    ids=str,
)
def test_published_counts(name: str, options: dict[str, Any], geometry: Geometry, counted: int) -> None:
    assert create(name, **options).count(geometry) == counted


@pytest.mark.parametrize(
    ("name", "options", "size", "counted"),
    [
        ("loretta_rep", {}, (12,), 221_184),
        ("tt_lora", {}, (17,), 223_992),
        ("trac", {}, (121,), 220_896),
        ("lora_xs", {}, (78,), 219_024),
        ("quanta", {}, (12, 4, 4, 2, 2), 226_368),
        # Rank 80 has 218,880, which is farther.
        ("metatt", {}, (81,), 222_831),
        ("metatt", {"modes": "5d"}, (76,), 219_184),
    ],
    ids=str,
)
def test_the_budget_of_lora_r4(
    name: str, options: dict[str, Any], size: tuple[int, ...], counted: int
) -> None:
    fitted = create(name, **QKV, **options).fit(BASE, 221_184)
    assert (fitted.size, fitted.count(BASE)) == (size, counted)


def test_frozen_numbers_are_counted_apart() -> None:
    trac, xs = create("trac", rank=16), create("lora_xs", rank=16)
    assert (trac.frozen_count(BASE), trac.kept_count(BASE)) == (15_360, 0)
    assert trac.frozen_count(LLAMA) == 92_160
    assert xs.frozen_count(BASE) == xs.kept_count(BASE) == 12 * 16 * (4 * 2 * 768 + 2 * (768 + 3072))
    quanta = create("quanta", axes=(8, 6, 4, 4))
    assert (quanta.frozen_count(BASE), quanta.kept_count(BASE)) == (quanta.count(BASE), 0)


@pytest.mark.parametrize("name", ["trac", "quanta", "lora_xs", "dota"])
def test_frozen_parts_come_back_bit_for_bit(name: str) -> None:
    options = {"axes": (4, 3, 2)} if name == "quanta" else {"rank": 3}
    backbone, adapter = attached(name, options)
    state, frozen = adapter.state(), copy.deepcopy(adapter.frozen())
    wanted = backbone.module(inputs(GEOMETRY))
    adapter.detach()
    again = create(name, **options).attach(backbone, torch.Generator().manual_seed(9))
    again.load(state)
    assert all(torch.equal(again.frozen()[key], tensor) for key, tensor in frozen.items())
    assert torch.equal(backbone.module(inputs(GEOMETRY)), wanted)


def test_lora_xs_lies_between_singular_vectors() -> None:
    _, adapter = attached("lora_xs", {"rank": 5, "targets": "qv"})
    weight = adapter.bases[Site(1, "value")].weight.detach()
    u, s, vh = torch.linalg.svd(weight)
    a, b = adapter.frozen()["A3"], adapter.frozen()["B3"]
    torch.testing.assert_close(b @ a, (u[:, :5] * s[:5]) @ vh[:5], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(a.norm(dim=1), s[:5], rtol=1e-5, atol=1e-5)
    assert create("lora_xs", rank=5).kept_count(GEOMETRY) > 0


def test_published_starts_have_their_published_size() -> None:
    """‖ΔW‖ of one site in RoBERTa-base's shape: LoRETTA 2.3 to 9.0 over six seeds, TT-LoRA about 0.3."""
    geometry = Geometry(768, 12, 1, 3072)
    for name, low, high in (("loretta_rep", 2.0, 9.5), ("tt_lora", 0.24, 0.36)):
        method: Any = create(name, rank=5)
        for seed in range(3):
            contracted = method.parametrise(geometry, torch.Generator().manual_seed(seed)).contract()
            norm = (contracted.ups[Site(0, "query")] @ contracted.downs[0]).norm()
            assert low < norm < high, (name, norm)


def test_unequal_weights_and_primes() -> None:
    wide = Geometry(24, 4, 2, 60)
    for name in ("loretta_rep", "tt_lora", "trac", "lora_xs", "cp", "dota", "metatt"):
        method = create(name, rank=2, targets="qkvo+mlp")
        backbone = SmallBackbone(wide)
        adapter = method.attach(backbone, torch.Generator().manual_seed(0))
        assert adapter.delta(Site(1, "fc1")).shape == (60, 24)
        assert adapter.delta(Site(1, "fc2")).shape == (24, 60)
    with pytest.raises(UserError, match=r"'reconstruction' needs square weights, fc1 is 60 × 24 here"):
        create("tt_lora", rank=2, targets="qkvo+mlp", form="reconstruction").count(wide)
    prime = Geometry(23, 1, 1, 92)
    for name in ("loretta_rep", "tt_lora", "trac", "lora_xs", "cp", "dota", "metatt"):
        create(name, rank=2, targets="qv").attach(SmallBackbone(prime), torch.Generator())
    with pytest.raises(UserError, match="axes of 1 cannot make up 24; accepted is 2 to 23"):
        create("quanta", axes=(1,)).count(GEOMETRY)
    assert create("quanta").fit(Geometry(769, 1, 1, 3076), 20_000).size == (8, 7, 7, 2)


def test_a_rank_above_the_singular_vectors_is_refused() -> None:
    with pytest.raises(
        UserError, match="rank is 25, accepted is at most 24: no weight has more singular vectors"
    ):
        create("lora_xs", rank=25, targets="qv").attach(SmallBackbone(GEOMETRY), torch.Generator())


def test_labels() -> None:
    assert methods.create("metatt", rank=4, modes="5d").label == "MetaTT-5D"
    assert methods.create("quanta", axes=(4, 3, 2)).label == "QuanTA"
    assert methods.create("loretta_rep", rank=4, start="zero").label == "LoRETTA-rep (start=zero)"
