"""Tests per-site and shared tensor methods against naive reconstructions and published counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tensorly as tl
import torch
from torch import Tensor

from tensorbench.baselines.dota import modes_of
from tensorbench.methods import Geometry, NotLowRank, Site, UserError, create
from tensorbench.methods.backbone import GATED_PROJECTIONS

from ..methods.oracle import (
    BASE,
    RANK,
    SCALE,
    SMOLLM2,
    UNEQUAL,
    Dense,
    DenseOracle,
    LowRankOracle,
    StackedOracle,
    Values,
    check_twenty_steps,
    copied,
    stacked,
)
from ..methods.toy import ToyBackbone

#: Geometries of full attention: one with a hidden size of four prime factors, and one with a prime hidden
#: size.
SMALL, PRIME = Geometry(24, 4, 2, 96), Geometry(23, 1, 1, 92)
LARGE, LLAMA = Geometry(1024, 16, 24, 4096), Geometry(4096, 32, 32, 11008)
QKV = {"targets": "qkv"}


def product(cores: list[Tensor]) -> Tensor:
    """The full tensor of a tensor train, by one einsum over all of its cores."""
    letters, bonds = "abcdefghij", "zyxwvutsrqp"
    terms = [f"{bonds[i]}{letters[i]}{bonds[i + 1]}" for i in range(len(cores))]
    return torch.einsum(f"{','.join(terms)}->{letters[: len(cores)]}", *cores)


def train(values: Values, prefix: str, layer: int | None = None) -> Tensor:
    """The full tensor of the tensor train whose cores have this prefix.

    If `layer` is given, each core is a stack over layers, and this layer's core is taken.
    """
    cores = [value for key, value in values.items() if key.startswith(f"{prefix}.")]
    return product(cores if layer is None else [core[layer] for core in cores])


class SiteOracle(LowRankOracle):
    """Checks for methods with a separate update for every site, on weights of all shapes."""

    options = {"rank": RANK, "scale": SCALE, "targets": "qkvo+mlp"}
    geometries = (SMALL, PRIME, *UNEQUAL)

    def dense(self, values: Values, geometry: Geometry) -> Dense:
        sites = geometry.sites(self.method().projections)
        return {site: (self.update(values, site, *geometry.shape(site.projection)), None) for site in sites}

    def update(self, values: Values, site: Site, out: int, in_: int) -> Tensor:
        raise NotImplementedError

    test_counts = None  # The only closed form is the source's; `published` has many counts.


class TestLoRETTA(SiteOracle):
    name = "loretta_rep"
    published = [
        ({"rank": 5, "targets": "qv"}, BASE, 27_840),
        ({"rank": 5, **QKV}, BASE, 41_760),
        ({"rank": 12, **QKV}, BASE, 221_184),
        ({"rank": 5, "targets": "qv"}, LARGE, 61_440),
        ({"rank": 5, "targets": "qv"}, LLAMA, 102_400),
        ({"rank": 8, "targets": "qv"}, LLAMA, 249_856),
        # Modes of the trains: 8·8·8·9 and 4·6·8·8.
        ({"rank": 4, "targets": "qv"}, SMOLLM2, 30 * (3 * (17 * 4 + 16 * 4**2) + 12 * 4 + 14 * 4**2)),
    ]
    budgets = [({}, (12,), 221_184)]

    def update(self, values: Values, site: Site, out: int, in_: int, width: int = 8) -> Tensor:
        a = train(values, f"inputs.{site.projection}.cores", site.layer).reshape(in_, width)
        b = train(values, f"outputs.{site.projection}.cores", site.layer).reshape(width, out)
        return SCALE / width * (a @ b).T


class TestLoRETTAFromZero(TestLoRETTA):
    options = {**TestLoRETTA.options, "start": "zero"}
    geometries = (SMALL,)
    zero = r"^outputs\.\w+\.cores\.3"


class TestTTLoRA(SiteOracle):
    name = "tt_lora"
    published = [
        ({"rank": 5, "targets": "qv"}, BASE, 23_760),
        ({"rank": 16, **QKV}, BASE, 202_752),
        ({"rank": 17, **QKV}, BASE, 223_992),
        ({"rank": 21, "targets": "qv"}, BASE, 212_688),
        # Modes of the trains: 9·8·8 and 8·6·4.
        ({"rank": 4, "targets": "qv"}, SMOLLM2, 30 * ((18 + 17) * 4 + (32 + 26) * 4**2)),
    ]
    budgets = [({}, (17,), 223_992)]

    def update(self, values: Values, site: Site, out: int, in_: int) -> Tensor:
        """The update (out, in). The train has the input's modes in reverse order."""
        tensor = train(values, f"trains.{site.projection}.cores", site.layer)
        inputs = next(k for k in range(1, tensor.dim()) if math.prod(tensor.shape[:k]) == in_)
        order = [*reversed(range(inputs)), *range(inputs, tensor.dim())]
        return SCALE * tensor.permute(order).reshape(in_, out).T


class TestTTLoRAFromZero(TestTTLoRA):
    options = {**TestTTLoRA.options, "start": "zero", "targets": "qv"}
    geometries = (SMALL,)
    zero = r"cores\.5"


class TestTTLoRAReconstruction(SiteOracle):
    name = "tt_lora"
    options = {"rank": RANK, "scale": SCALE, "form": "reconstruction"}
    geometries = (SMALL, PRIME)

    def update(self, values: Values, site: Site, out: int, in_: int) -> Tensor:
        return SCALE * train(values, f"trains.{site.projection}.cores", site.layer).reshape(out, in_)


class TestTRAC(SiteOracle):
    name = "trac"
    zero = r"_B\.last"
    published = [
        ({"rank": 16, "targets": "qv"}, BASE, 26_304),
        ({"rank": 8, **QKV}, BASE, 25_632),
        ({"rank": 16, **QKV}, BASE, 39_456),
        ({"rank": 121, **QKV}, BASE, 220_896),
        ({"rank": 16, "targets": "qv"}, LLAMA, 106_496),
        ({"rank": 4, "targets": "qv"}, SMOLLM2, 30 * (85 + 237 + 85 + 140) + (108 + 324 + 108 + 288) * 4),
    ]
    budgets = [({}, (121,), 220_896)]

    def update(self, values: Values, site: Site, out: int, in_: int) -> Tensor:
        sides = []
        for side, size in (("A", in_), ("B", out)):
            prefix = f"sides.{site.projection}_{side}"
            first, last = values[f"{prefix}.first"][site.layer], values[f"{prefix}.last"]
            ranks, mode = values[f"{prefix}.ranks"][site.layer, 0], values[f"{prefix}.mode"][site.layer, 0]
            middle = values[f"middle_{site.projection}_{side}"]
            entries = torch.einsum("ax,xby,y,ycr,c->abcr", first, middle, ranks, last, mode[:, 0])
            sides.append(entries.reshape(size, -1))
        a, b = sides
        return SCALE / RANK * b @ a.T

    def test_frozen_parameters_are_counted_separately(self) -> None:
        method = create("trac", rank=16)
        assert (method.frozen_count(BASE), method.kept_count(BASE)) == (15_360, 0)
        assert method.frozen_count(LLAMA) == 92_160


class TestLoRAXS(SiteOracle):
    name = "lora_xs"
    geometries = (SMALL, *UNEQUAL)
    published = [
        ({"rank": 4, **QKV}, BASE, 576),
        ({"rank": 78, **QKV}, BASE, 219_024),
        ({"rank": 4}, SMOLLM2, 30 * 7 * 4**2),
    ]
    budgets = [({}, (78,), 219_024)]

    def dense(self, values: Values, geometry: Geometry) -> Dense:
        sites = geometry.sites(self.method().projections)
        return {
            site: (SCALE / RANK * values[f"B{index}"] @ values["cores"][index] @ values[f"A{index}"], None)
            for index, site in enumerate(sites)
        }

    def test_it_lies_between_singular_vectors(self) -> None:
        _, adapter = self.attached(SMALL, rank=5, targets="qv", basis="svd")
        weight = adapter.bases[Site(1, "value")].weight.detach()
        u, s, vh = torch.linalg.svd(weight)
        a, b = adapter.frozen()["A3"], adapter.frozen()["B3"]
        torch.testing.assert_close(b @ a, (u[:, :5] * s[:5]) @ vh[:5], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(a.norm(dim=1), s[:5], rtol=1e-5, atol=1e-5)
        xs = create("lora_xs", rank=16)
        assert xs.frozen_count(BASE) == xs.kept_count(BASE) == 12 * 16 * (4 * 2 * 768 + 2 * (768 + 3072))


class TestLoRAXSOnRandomBases(TestLoRAXS):
    options = {**TestLoRAXS.options, "basis": "random", "start": "zero"}
    geometries = (SMALL,)
    zero = "cores"


class TestCP(SiteOracle):
    name = "cp"
    zero = "weights"
    published = [
        ({"rank": 1, "targets": "qv"}, Geometry(2048, 32, 24, 8192), 48 * 193),
        ({"rank": 4, "targets": "qv"}, SMOLLM2, 30 * 4 * ((4 * 24 + 1) + (2 * 24 + 12 + 16 + 1))),
    ]

    def update(self, values: Values, site: Site, out: int, in_: int) -> Tensor:
        factors = [values[f"factors.{site.projection}.{mode}"][site.layer] for mode in range(4)]
        units = [factor / factor.square().sum(0).sqrt() for factor in factors]
        with tl.backend_context("pytorch"):
            weights = values[f"weights.{site.projection}"][site.layer, 0]
            return SCALE * tl.cp_to_tensor((weights, units)).reshape(in_, out).T


class TestMetaTT(StackedOracle):
    name = "metatt"
    options = {"rank": RANK, "scale": SCALE, "targets": "qkvo+mlp"}
    zero = r"cores\.0"
    published = [
        ({"rank": 8, **QKV}, BASE, 13_248),
        ({"rank": 16, **QKV}, BASE, 28_416),
        ({"rank": 80, **QKV}, BASE, 218_880),
        ({"rank": 8, "targets": "qv"}, BASE, 13_184),
        ({"rank": 4, "targets": "qv"}, SMOLLM2, 4 * (576 + 576) + (30 + 2) * 4**2),
        ({"rank": 4}, SMOLLM2, 4 * (576 + 576) + (30 + 13) * 4**2),
    ]
    # Rank 80 is farther from the budget, with 218,880 parameters.
    budgets = [({}, (81,), 222_831)]
    test_containers_hold_the_tensors = None  # It has no containers.

    def slices(self, values: Values, geometry: Geometry) -> Any:
        """The slices of a tensor with the modes input, layer, slice and output.

        In the form `5d`, the modes head and channel stand in place of output.
        """
        full = SCALE * train(values, "cores").flatten(3).permute(1, 2, 3, 0)
        return stacked(
            full, geometry, *(name for name in GATED_PROJECTIONS if name in self.method().projections)
        )

    def formula(self, geometry: Geometry, rank: int) -> int:
        slices = 4 + -(-geometry.mlp // geometry.hidden) * (3 if geometry.gated else 2)
        width = max(geometry.hidden, geometry.attention_width)
        return (geometry.hidden + width) * rank + (geometry.layers + slices) * rank**2


class TestMetaTT5D(TestMetaTT):
    options = {"rank": RANK, "scale": SCALE, "targets": "qv", "modes": "5d"}
    published = [
        ({"rank": 8, **QKV}, BASE, 8_384),
        ({"rank": 76, **QKV}, BASE, 219_184),
        ({"rank": 4}, SMOLLM2, 4 * (576 + 64) + (30 + 2 + 9) * 4**2),
    ]
    budgets = [({}, (76,), 219_184)]

    def formula(self, geometry: Geometry, rank: int) -> int:
        modes = geometry.layers + 2 + geometry.heads
        return (geometry.hidden + geometry.head_size) * rank + modes * rank**2


class TestMetaTT5DOnAll(TestMetaTT5D):
    options = {**TestMetaTT5D.options, "targets": "qkvo+mlp"}
    published = TestMetaTT5D.published[:2]

    def formula(self, geometry: Geometry, rank: int) -> int:
        slices = 4 + -(-geometry.mlp // geometry.hidden) * (3 if geometry.gated else 2)
        heads = -(-max(geometry.hidden, geometry.attention_width) // geometry.head_size)
        modes = geometry.layers + slices + heads
        return (geometry.hidden + geometry.head_size) * rank + modes * rank**2


class TestQuanTA(DenseOracle):
    """Checks QuanTA with axes 4, 3 and 2: gates on the last two, the outer two and the first two."""

    name = "quanta"
    options = {"axes": (4, 3, 2)}
    geometries = (SMALL,)
    published = [
        ({"axes": (16, 8, 8, 4)}, LLAMA, 2_752_512),
        ({"axes": (8, 6, 4, 4), **QKV}, BASE, 207_360),
        ({"axes": (8, 8, 4, 3), **QKV}, BASE, 267_840),
        ({"axes": (8, 8, 3, 2, 2), **QKV}, BASE, 228_960),
        ({"axes": (8, 8, 4, 4)}, LARGE, 48 * 8_448),
        ({"axes": (6, 6, 4, 4)}, SMOLLM2, 60 * (36**2 + 4 * 24**2 + 16**2)),
    ]
    test_counts = None  # It has axes instead of a rank.

    def dense(self, values: Values, geometry: Geometry) -> Dense:
        def circuit(gates: list[Tensor]) -> Tensor:
            z = torch.eye(geometry.hidden, dtype=gates[0].dtype).reshape(-1, 4, 3, 2)
            z = torch.einsum("nabc,yzbc->nayz", z, gates[0].reshape(3, 2, 3, 2))
            z = torch.einsum("nabc,xzac->nxbz", z, gates[1].reshape(4, 2, 4, 2))
            z = torch.einsum("nabc,xyab->nxyc", z, gates[2].reshape(4, 3, 4, 3))
            return z.reshape(geometry.hidden, geometry.hidden).T

        updates: Dense = {}
        for site in geometry.sites(("query", "value")):
            now, start = (
                circuit([values[f"{site}.{kind}{i}"] for i in range(3)]) for kind in ("gates.", "start")
            )
            updates[site] = now - start, None
        return updates

    def test_axes(self) -> None:
        fitted = create("quanta", **QKV).fit(BASE, 221_184)
        assert (fitted.size, fitted.count(BASE)) == ((12, 4, 4, 2, 2), 226_368)
        assert create("quanta").fit(Geometry(769, 1, 1, 3076), 20_000).size == (8, 7, 7, 2)
        method = create("quanta", axes=(8, 6, 4, 4))
        assert (method.frozen_count(BASE), method.kept_count(BASE)) == (method.count(BASE), 0)


class TestDoTA(DenseOracle):
    name = "dota"
    options = {"rank": RANK, "targets": "qkvo+mlp"}
    geometries = (SMALL,)
    published = [({"rank": 4, "targets": "qv"}, SMOLLM2, 30 * ((52 + 36) * 4 + (52 + 40) * 4**2))]
    test_counts = None

    def dense(self, values: Values, geometry: Geometry) -> Dense:
        modes = {24: (2, 2, 2, 3), 96: (2, 3, 4, 4)}

        def operator(prefix: str, out: int, in_: int) -> Tensor:
            cores = [value for key, value in values.items() if key.startswith(prefix)]
            sizes = zip(cores, modes[out], modes[in_], strict=True)
            shaped = [core.reshape(core.shape[0], i, j, core.shape[2]) for core, i, j in sizes]
            return torch.einsum("zaAy,ybBx,xcCw,wdDv->abcdABCD", *shaped).reshape(out, in_)

        updates: Dense = {}
        for site in geometry.sites(geometry.projections):
            out, in_ = geometry.shape(site.projection)
            trained, start = (operator(f"{site}.{part}", out, in_) for part in ("cores.", "start"))
            updates[site] = trained - start, None
        return updates


def test_twenty_steps_of_the_bottleneck() -> None:
    backbone = ToyBackbone(SMALL)
    adapter = create("loretta_adp", rank=2, width=4).attach(backbone, torch.Generator().manual_seed(0))
    plain, own = ToyBackbone(SMALL), copied(adapter)

    def bottleneck(site: Site, y: Tensor) -> Tensor:
        down = train(own, f"{site}.down.cores", 0).reshape(y.shape[-1], 4)
        up = train(own, f"{site}.up.cores", 0).reshape(4, y.shape[-1])
        return torch.relu(y @ down + own[f"{site}.down_bias"]) @ up + own[f"{site}.up_bias"]

    for site in adapter.bases:
        layer = plain.module.get_submodule(plain.path(site))
        layer.register_forward_hook(lambda _, __, y, site=site: y + bottleneck(site, y))
    check_twenty_steps(backbone, adapter, own, plain.module)
    with pytest.raises(NotLowRank):
        adapter.factors()
    with pytest.raises(UserError, match="LoRETTA-adp"):
        adapter.merge()
    counts = [(5, BASE, 57_408), (8, BASE, 112_128), (8, LLAMA, 64 * 9_600)]
    # The trains of the last case have the modes 12·12·16·16.
    for rank, geometry, count in [*counts, (4, SMOLLM2, 60 * (2 * (28 * 4 + 28 * 4**2) + 64 + 576))]:
        assert create("loretta_adp", rank=rank).count(geometry) == count


@pytest.mark.parametrize(("name", "low", "high"), [("loretta_rep", 2.0, 9.5), ("tt_lora", 0.24, 0.36)])
def test_published_starts_have_their_published_size(name: str, low: float, high: float) -> None:
    """Checks ‖ΔW‖ at the start, for one site of RoBERTa-base's shape.

    Expected are about 0.3 for TT-LoRA, and 2.3 to 9.0 for LoRETTA, where it varies by seed.
    """
    method: Any = create(name, rank=5)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        contracted = method.parametrise(Geometry(768, 12, 1, 3072), generator).contract()
        assert low < (contracted.ups[Site(0, "query")] @ contracted.downs[0]).norm() < high


def test_a_prime_size_is_a_mode_of_its_own() -> None:
    assert modes_of(23, 92) == ((1, 1, 23), (2, 2, 23))
