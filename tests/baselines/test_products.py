"""Tests methods whose updates are products of small matrices against these products, matrix by matrix."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tensorbench.methods import Geometry, NotLowRank, Site, UserError, create

from ..messages import naming
from ..methods.oracle import (
    BASE,
    EVEN,
    RANK,
    SCALE,
    UNEQUAL,
    Dense,
    DenseOracle,
    LowRankOracle,
    Values,
    assert_uniform,
    values_of,
)
from ..methods.toy import ToyBackbone

QKV = {"targets": "qkv"}


class ProductOracle(LowRankOracle):
    """Checks for methods whose update of a site depends only on parameters of its projection and layer."""

    def dense(self, values: Values, geometry: Geometry) -> Dense:
        names = {key.partition(".")[0] for key in values}
        updates: Dense = {}
        for site in geometry.sites(self.method().projections):
            own = {name: values[f"{name}.{site.projection}"] for name in names}
            updates[site] = (
                self.update({name: self.of_layer(name, value, site) for name, value in own.items()}),
                None,
            )
        return updates

    def of_layer(self, name: str, value: Tensor, site: Site) -> Tensor:
        return value[site.layer]

    def update(self, own: Values) -> Tensor:
        """The update ΔW (out, in) of a site."""
        raise NotImplementedError

    def test_at_the_highest_rank_every_update_can_have_full_rank(self) -> None:
        geometry = UNEQUAL[-1]  # Its keys and values are a third as wide as its queries.
        (limit,) = self.method().rank_limits(geometry)
        _, adapter = self.attached(geometry, rank=limit)
        for _, delta in adapter.deltas():
            assert torch.linalg.matrix_rank(delta) == min(delta.shape)


class TestCDKA(ProductOracle):
    name = "cdka"
    zero = r"^B\."
    published = [
        ({"rank": 4, "r1": 2, "r2": 2, **QKV}, BASE, 221_184),
        ({"rank": 4, "r1": 2, "r2": 8, **QKV}, BASE, 36 * 13_056),
        ({"rank": 1, "r1": 4, "r2": 32, **QKV}, BASE, 224_640),
        ({"rank": 4, "r1": 1, "r2": 1, **QKV}, BASE, 221_184),
    ]
    budgets = [({}, (4,), 221_184)]

    def update(self, own: Values) -> Tensor:
        terms = zip(own["A"], own["B"], strict=True)
        return SCALE / math.sqrt(RANK * 2) * sum(torch.kron(tall, wide) for wide, tall in terms)  # type: ignore[return-value]

    def formula(self, geometry: Geometry, rank: int) -> int:
        shapes = [geometry.shape(name) for name in geometry.having(self.method().projections)]
        # r1 = r2 = 2 cancel out: LoRA's count.
        return geometry.layers * rank * sum(out + in_ for out, in_ in shapes)

    def test_its_rank_is_that_of_all_terms(self) -> None:
        _, adapter = self.attached(EVEN[0], rank=2)
        delta = adapter.delta(Site(0, "query"))
        assert torch.linalg.matrix_rank(delta) == 2 * 2 * 2

    def test_wide_factors_start_as_published(self) -> None:
        start = self.start(rank=8, r2=8)
        bound = math.sqrt(8 / 768)
        assert 0.99 * bound < start["A.query"].abs().max() <= bound

    def test_uneven_divisors(self) -> None:
        geometry = Geometry(24, 4, 2, 96)
        _, adapter = self.attached(geometry, r1=3, r2=4, rank=2)
        values = {key: value.detach() for key, value in adapter.named_parameters().items()}
        for site in adapter.bases:
            terms = zip(
                values[f"A.{site.projection}"][site.layer],
                values[f"B.{site.projection}"][site.layer],
                strict=True,
            )
            dense = SCALE / math.sqrt(2 * 4) * sum(torch.kron(tall, wide) for wide, tall in terms)
            torch.testing.assert_close(adapter.delta(site), dense)


class TestABBA(ProductOracle):
    name = "abba"
    zero = r"^B2\."
    seedless = r"^(A1|B1)\."  # They come from the weights.
    published = [({"rank": 2, **QKV}, BASE, 221_184), ({"rank": 4, **QKV}, BASE, 442_368)]
    budgets = [({}, (2,), 221_184)]

    def update(self, own: Values) -> Tensor:
        return SCALE * (own["B1"] @ own["A1"]) * (own["B2"] @ own["A2"])

    def formula(self, geometry: Geometry, rank: int) -> int:
        shapes = [geometry.shape(name) for name in geometry.having(self.method().projections)]
        return 2 * geometry.layers * rank * sum(out + in_ for out, in_ in shapes)

    def test_the_first_pair_starts_as_the_largest_singular_vectors(self) -> None:
        _, adapter = self.started(EVEN[0], rank=4)
        values = adapter.named_parameters()
        for site, base in adapter.bases.items():
            u, s, vh = torch.linalg.svd(base.weight.detach())
            left, right = (values[f"{name}.{site.projection}"][site.layer] for name in ("B1", "A1"))
            # Ten power steps leave a little of the other singular vectors.
            torch.testing.assert_close(left @ right, (u[:, :4] * s[:4]) @ vh[:4], rtol=0, atol=1e-3)
            torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1), rtol=1e-5, atol=1e-5)

    def test_a_rank_above_the_smallest_side_is_refused(self) -> None:
        # Its keys and values are 6 wide.
        geometry = Geometry(24, 4, 2, 60, kv_heads=1)
        backbone = ToyBackbone(geometry)
        before = list(backbone.module.modules())
        with pytest.raises(UserError, match=naming("rank", 7, 6)):
            self.method(rank=7, targets="qkv").attach(backbone, torch.Generator())
        assert list(backbone.module.modules()) == before
        assert all(parameter.requires_grad for parameter in backbone.module.parameters())
        self.method(rank=6, targets="qkv").attach(backbone, torch.Generator())


class TestKhatriRaoLoHa(ProductOracle):
    name = "loha_kr"
    zero = r"^B1\."
    seedless = r"^B2\."
    published = [
        ({"rank": 2, **QKV}, BASE, 221_184),
        ({"rank": 32, "targets": "qv"}, BASE, 24 * 4 * 32 * 768),
    ]
    budgets = [({}, (2,), 221_184)]

    def update(self, own: Values) -> Tensor:
        return SCALE / RANK * (own["B1"] @ own["A1"]) * (own["B2"] @ own["A2"])

    formula = TestABBA.formula

    def test_it_begins_as_lora(self) -> None:
        start = self.start(BASE)
        torch.testing.assert_close(start["B2.query"] @ start["A2.query"], torch.ones(12, 768, 768))
        assert start["A1.query"].abs().max() <= 1 / math.sqrt(768)


class TestFLoRA(ProductOracle):
    name = "flora"
    zero = r"^G\."
    published = [({"rank": 4}, BASE, 221_184 + 36 * 4**2)]
    budgets = [({}, (4,), 221_184 + 36 * 4**2)]

    def update(self, own: Values) -> Tensor:
        return SCALE * torch.einsum("ia,ab,ob->oi", own["A"], own["G"], own["B"])

    def formula(self, geometry: Geometry, rank: int) -> int:
        shapes = [geometry.shape(name) for name in geometry.having(self.method().projections)]
        return geometry.layers * sum(rank * (out + in_) + rank**2 for out, in_ in shapes)

    def test_factors_start_as_published(self) -> None:
        """The reference code draws Kaiming-normal values with a = √3, whose fan-in is the rank."""
        start = self.start(rank=8)
        for key in ("A.query", "B.value"):
            expected = torch.nn.init.kaiming_normal_(torch.empty(100_000, 8), a=math.sqrt(3)).std()
            assert start[key].std().item() == pytest.approx(expected.item(), rel=0.02)

    def test_arithmetic_of_the_reference_code(self) -> None:
        """It contracts the core with the factors of the input and of the output, one after the other."""
        _, adapter = self.attached(EVEN[0])
        values = values_of(adapter)
        a, core, b = (values[f"{name}.key"][1] for name in "AGB")
        update = torch.tensordot(torch.tensordot(core, a, dims=[[0], [1]]), b, dims=[[0], [1]])
        torch.testing.assert_close(adapter.delta(Site(1, "key")), SCALE * update.T, rtol=1e-12, atol=1e-12)


class TestMoRe(ProductOracle):
    name = "more"
    zero = r"^L\."
    published = [
        ({"rank": 4}, BASE, 221_184),
        ({"rank": 1, "blocks": 16}, BASE, 55_296),
        # 30 is padded to 32.
        ({"rank": 2}, EVEN[1], 3 * 2 * 2 * (32 + 32)),
    ]
    budgets = [({}, (4,), 221_184)]

    def dense(self, values: Values, geometry: Geometry) -> Dense:
        return {
            site: (weight[: geometry.shape(site.projection)[0], : geometry.shape(site.projection)[1]], None)
            for site, (weight, _) in super().dense(values, geometry).items()
        }

    def update(self, own: Values) -> Tensor:
        """By indices: block k of R, value q of it, and block l of L that reads value k·r + q."""
        right, left = own["R"], own["L"]
        blocks, rank, columns = right.shape
        update = right.new_zeros(blocks * left.shape[1], blocks * columns)
        for middle in range(blocks * rank):
            k, q = divmod(middle, rank)
            turn, reader = divmod(middle, blocks)
            rows = torch.arange(left.shape[1]) * blocks + reader
            update[rows, k * columns : (k + 1) * columns] += torch.outer(left[reader, :, turn], right[k, q])
        return SCALE * update

    def formula(self, geometry: Geometry, rank: int) -> int:
        shapes = [geometry.shape(name) for name in geometry.having(self.method().projections)]
        return geometry.layers * rank * sum(4 * (math.ceil(a / 4) + math.ceil(b / 4)) for a, b in shapes)

    def test_right_blocks_start_as_published(self) -> None:
        assert_uniform(self.start(rank=8)["R.query"], 1 / math.sqrt(768 / 4))

    def test_arithmetic_of_the_reference_code(self) -> None:
        """Applied to inputs: multiply by blocks, regroup the values by their turn, multiply by blocks."""
        _, adapter = self.attached(EVEN[0])
        values, site = values_of(adapter), Site(2, "value")
        right, left = values["R.value"][2], values["L.value"][2]
        x = torch.randn(5, 24, dtype=right.dtype, generator=torch.Generator().manual_seed(0))
        middle = torch.einsum("kqp,bkp->bkq", right, x.unflatten(1, (4, -1))).flatten(1)
        dealt = middle.unflatten(1, (-1, 4)).mT
        expected = SCALE * torch.einsum("lsr,blr->bsl", left, dealt).flatten(1)
        torch.testing.assert_close(x @ adapter.delta(site).T, expected, rtol=1e-12, atol=1e-12)

    def test_its_rank_is_that_of_all_blocks(self) -> None:
        _, adapter = self.attached(EVEN[0], rank=2)
        assert torch.linalg.matrix_rank(adapter.delta(Site(0, "query"))) == 4 * 2


class TestKAdaptation(ProductOracle):
    name = "kadaptation"
    options = {"rank": RANK, "scale": SCALE, "products": 2}
    zero = r"^R\."
    published = [
        ({"rank": 4, "products": 32, **QKV}, BASE, 221_184 + 3 * 2 * 32**2),
        ({"rank": 1, "products": 32, **QKV}, BASE, 55_296 + 6_144),
    ]
    budgets = [({"products": 4}, (4,), 221_184 + 3 * 2 * 4**2)]

    def of_layer(self, name: str, value: Tensor, site: Site) -> Tensor:
        return value if name in ("l", "r") else value[site.layer]

    def update(self, own: Values) -> Tensor:
        total: Tensor = 0  # type: ignore[assignment]
        for inner, outer, left, right in zip(own["l"], own["r"], own["L"], own["R"], strict=True):
            rule, weight = torch.outer(inner, outer), left @ right.T
            total = total + torch.kron(rule.T, weight.T)
        return SCALE * total

    def formula(self, geometry: Geometry, rank: int) -> int:
        shapes = [geometry.shape(name) for name in geometry.having(self.method().projections)]
        return geometry.layers * rank * sum(out + in_ for out, in_ in shapes) + 2 * len(shapes) * 2**2


class TestKRAdapter(DenseOracle):
    name = "kradapter"
    options = {}
    zero = r"\.U$"
    published = [(QKV, BASE, 36 * 43_008), ({"targets": "qkvo+mlp"}, BASE, 12 * (4 * 43_008 + 2 * 108_288))]
    test_counts = None

    def dense(self, values: Values, geometry: Geometry) -> Dense:
        updates: Dense = {}
        for site in geometry.sites(self.method().projections):
            out, in_ = geometry.shape(site.projection)
            u, v = values[f"{site}.U"], values[f"{site}.V"]
            rows = torch.stack([torch.kron(v[p], u[p]) for p in range(min(out, in_))])
            product = 2 * rows[:, : max(out, in_)]
            updates[site] = (product if out <= in_ else product.T, None)
        return updates

    def test_its_size_is_that_of_the_weights(self) -> None:
        assert create("kradapter", **QKV).count(BASE) == 7 * 221_184
        for geometry in EVEN + UNEQUAL:
            backbone = ToyBackbone(geometry)
            method = create("kradapter", targets="qkvo+mlp")
            adapter = method.attach(backbone, torch.Generator())
            assert adapter.parameter_count == method.count(geometry)
            with pytest.raises(NotLowRank):
                adapter.factors()

    def test_the_update_has_full_rank(self) -> None:
        _, adapter = self.attached(EVEN[0])
        assert torch.linalg.matrix_rank(adapter.delta(Site(0, "query"))) == 24
