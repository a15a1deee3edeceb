"""FacT against a dense reading of its paper, slice by slice, and of the reference's reshape."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import methods
from methods import PROJECTIONS, Geometry, Site
from methods.lowrank import LowRankAdapter, Masks

from .dense import (
    BASE,
    GEOMETRIES,
    TOLERANCE,
    Dense,
    SmallBackbone,
    SpiedDropout,
    attach,
    check_against,
    check_count,
    check_fit,
    check_seeds,
    check_start,
    inputs,
    parameters,
    start,
    trained_forward,
)

SCALE = 1.7
RANK = 3


def tt_sigmas(values: dict[str, Tensor], layer: int) -> list[Tensor]:
    """The 12 middles of a layer as the core holds them: (r in, r out) each, turned to (r out, r in)."""
    core = values["tensor.factors.factor_1"]
    return [core[:, 12 * layer + i, :].T for i in range(12)]


def tk_mixtures(values: dict[str, Tensor], layer: int) -> list[Tensor]:
    """M_i[a, b] = Σ_c C[a, b, c] · P[i, c], entry by entry."""
    core, mixture = values["tensor.core"], values["tensor.factors.factor_2"]
    rank = core.shape[0]
    mixed = []
    for i in range(12 * layer, 12 * layer + 12):
        m = torch.zeros(rank, rank, dtype=core.dtype)
        for a in range(rank):
            for b in range(rank):
                for c in range(rank):
                    m[a, b] += core[a, b, c] * mixture[i, c]
        mixed.append(m)
    return mixed


def tk_sigmas(values: dict[str, Tensor], layer: int) -> list[Tensor]:
    mixed = tk_mixtures(values, layer)
    return [m.T for m in mixed[:8]] + mixed[8:]


def tk_reference_sigmas(values: dict[str, Tensor], layer: int) -> list[Tensor]:
    """Flat column c is written as (rank, slice) c // 4, c % 4 and read as (slice, rank) c // r, c % r."""
    mixed = tk_mixtures(values, layer)
    rank = mixed[0].shape[0]

    def crossed(four: list[Tensor]) -> list[Tensor]:
        out = [torch.zeros_like(m) for m in four]
        for a in range(rank):
            for c in range(4 * rank):
                out[c // rank][a, c % rank] = four[c % 4][a, c // 4]
        return out

    return [m.T for m in mixed[:4]] + [m.T for m in crossed(mixed[4:8])] + crossed(mixed[8:])


def ends(values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """U (r, d) and V (d, r)."""
    if "tensor.core" in values:
        return values["tensor.factors.factor_0"].T, values["tensor.factors.factor_1"]
    return values["tensor.factors.factor_0"][0].T, values["tensor.factors.factor_2"][:, :, 0].T


CASES = [
    pytest.param("fact_tt", {}, tt_sigmas, id="tt"),
    pytest.param("fact_tk", {}, tk_sigmas, id="tk"),
    pytest.param("fact_tk", {"mlp_slices": "reference"}, tk_reference_sigmas, id="tk-reference"),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("name", "options", "sigmas"), CASES)
def test_equals_the_dense_formula(name: str, options: Any, sigmas: Any, geometry: Geometry) -> None:
    def oracle(values: dict[str, Tensor], geometry: Geometry) -> Dense:
        u, v = ends(values)
        dense: Dense = {}
        for layer in range(geometry.layers):
            slices = [SCALE * v @ sigma @ u for sigma in sigmas(values, layer)]
            for i, projection in enumerate(PROJECTIONS[:4]):
                dense[Site(layer, projection)] = slices[i], None
            dense[Site(layer, "fc1")] = torch.cat(slices[4:8], dim=0), None
            dense[Site(layer, "fc2")] = torch.cat(slices[8:12], dim=1), None
        return dense

    check_against(oracle, name, geometry, rank=RANK, scale=SCALE, **options)


def test_the_containers_hold_the_tensor_of_the_paper() -> None:
    """Slices over (input, slice, output) or (input, output, slice); TK's fc2 is the one that is turned."""
    geometry = GEOMETRIES[0]
    for name in ("fact_tt", "fact_tk"):
        _, adapter = attach(name, geometry, rank=RANK)
        full = adapter.parametrisation.tensor.to_tensor().detach()
        slices = full.movedim(1 if name == "fact_tt" else 2, 0)
        for layer in range(geometry.layers):
            of_layer = slices[12 * layer : 12 * layer + 12].mT
            delta = adapter.delta(Site(layer, "key")).detach()
            torch.testing.assert_close(delta, of_layer[1], **TOLERANCE)
            delta = adapter.delta(Site(layer, "fc1")).detach()
            torch.testing.assert_close(delta, of_layer[4:8].flatten(0, 1), **TOLERANCE)


def test_reference_slices_differ_from_the_paper_in_the_mlp_only() -> None:
    geometry = GEOMETRIES[0]
    _, paper = attach("fact_tk", geometry, rank=RANK)
    _, reference = attach("fact_tk", geometry, rank=RANK, mlp_slices="reference")
    for site in paper.factors():
        same = torch.allclose(paper.delta(site), reference.delta(site))
        assert same == (site.projection not in ("fc1", "fc2"))


@pytest.mark.parametrize(
    ("name", "rank", "published"),
    [
        ("fact_tt", 4, 8_448),
        ("fact_tt", 8, 21_504),
        ("fact_tt", 16, 61_440),
        ("fact_tk", 8, 13_952),
        ("fact_tk", 16, 30_976),
        ("fact_tk", 32, 86_528),
    ],
)
def test_published_counts(name: str, rank: int, published: int) -> None:
    check_count(name, BASE, rank, published)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_counts(geometry: Geometry) -> None:
    d, layers = geometry.hidden, geometry.layers
    for r in (1, 3, 7, 40):
        check_count("fact_tt", geometry, r, 2 * d * r + 12 * layers * r**2)
        check_count("fact_tk", geometry, r, 2 * d * r + 12 * layers * r + r**3)


@pytest.mark.parametrize("name", ["fact_tt", "fact_tk"])
def test_fit_is_the_nearest(name: str) -> None:
    check_fit(name, BASE)
    check_fit(name, GEOMETRIES[1])


@pytest.mark.parametrize(
    ("name", "zero"), [("fact_tt", "tensor.factors.factor_2"), ("fact_tk", "tensor.factors.factor_1")]
)
def test_starts_at_zero_by_v_alone(name: str, zero: str) -> None:
    check_start(name, GEOMETRIES[0], {zero}, rank=RANK, scale=100.0)
    check_seeds(name, rank=RANK)


def assert_uniform(values: Tensor, bound: float) -> None:
    """Fills [-bound, bound] and has the standard deviation bound / √3."""
    assert 0.97 * bound < values.max() <= bound
    assert -bound <= values.min() < -0.97 * bound
    assert abs(values.std() / (bound / math.sqrt(3)) - 1) < 0.05
    assert abs(values.mean()) < 0.05 * bound


def test_tt_starts_as_linear_layers_do() -> None:
    rank = 8
    values = start("fact_tt", rank=rank)
    assert_uniform(values["tensor.factors.factor_0"], 1 / math.sqrt(BASE.hidden))
    sigmas = values["tensor.factors.factor_1"].unflatten(1, (BASE.layers, 12))
    assert_uniform(sigmas[:, :, :8], 1 / math.sqrt(rank))
    assert_uniform(sigmas[:, :, 8:], 1 / math.sqrt(4 * rank))


def test_tk_starts_uniform_by_xavier() -> None:
    rank = 16
    values = start("fact_tk", rank=rank)
    assert_uniform(values["tensor.factors.factor_0"], 1 / math.sqrt(BASE.hidden))
    assert_uniform(values["tensor.core"], math.sqrt(3) / rank)
    assert_uniform(values["tensor.factors.factor_2"], math.sqrt(6 / (12 * BASE.layers + rank)))


@pytest.mark.parametrize(("name", "options", "sigmas"), CASES)
def test_dropout_sits_between_sigma_and_v(
    name: str, options: Any, sigmas: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = GEOMETRIES[0]
    backbone, adapter = attach(name, geometry, rank=RANK, scale=SCALE, **options)
    spy = SpiedDropout(monkeypatch)
    seen = trained_forward(backbone, inputs(geometry))
    assert {p for _, p in spy.calls} == {0.1}
    widths = [shape[-1] for shape, _ in spy.calls]
    assert widths == [RANK, RANK, RANK, RANK, 4 * RANK, RANK] * geometry.layers

    values = parameters(adapter)
    u, v = ends(values)
    for site, (x, y, frozen) in seen.items():
        middles = sigmas(values, site.layer)
        if site.projection == "fc1":
            narrow = torch.cat([x @ u.T @ sigma.T for sigma in middles[4:8]], dim=-1)
            chunks = (narrow * spy.mask(narrow)).split(RANK, dim=-1)
            update = torch.cat([chunk @ v.T for chunk in chunks], dim=-1)
        else:
            if site.projection == "fc2":
                narrow = sum(
                    part @ u.T @ sigma.T
                    for part, sigma in zip(x.split(geometry.hidden, dim=-1), middles[8:], strict=True)
                )
            else:
                narrow = x @ u.T @ middles[geometry.projections.index(site.projection)].T
            assert isinstance(narrow, Tensor)
            update = (narrow * spy.mask(narrow)) @ v.T
        torch.testing.assert_close(y, frozen + SCALE * update, **TOLERANCE)
    assert len(seen) == 6 * geometry.layers


def test_shared_dropout_of_entries_where_downs_are_joined_and_outputs_sliced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not FacT's own dropout: it is the method whose sites have what CaRA's have not."""
    geometry = GEOMETRIES[0]
    method: Any = methods.create("fact_tt", rank=RANK)
    parametrisation = method.parametrise(geometry, torch.Generator().manual_seed(0))
    with torch.no_grad():
        parametrisation.tensor.factors[2].normal_(generator=torch.Generator().manual_seed(1))
    backbone = SmallBackbone(geometry)
    adapter = LowRankAdapter(backbone, parametrisation, Masks(0.3, 0), "update")
    spy = SpiedDropout(monkeypatch)
    seen = trained_forward(backbone, inputs(geometry))
    assert spy.calls == [(geometry.shape(p), 0.3) for p in geometry.projections] * geometry.layers
    for site, (x, y, frozen) in seen.items():
        delta = adapter.delta(site).detach()
        torch.testing.assert_close(y, frozen + x @ (delta * spy.mask(delta)).T, **TOLERANCE)


def test_no_dropout_in_evaluation_nor_where_it_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = GEOMETRIES[0]
    spy = SpiedDropout(monkeypatch)
    backbone, _ = attach("fact_tt", geometry, rank=RANK)
    backbone.module(inputs(geometry))
    trained_forward(attach("fact_tt", geometry, rank=RANK, dropout=0.0)[0], inputs(geometry))
    assert spy.calls == []


def test_labels() -> None:
    assert methods.create("fact_tt", rank=4).label == "FacT-TT"
    label = methods.create("fact_tk", rank=4, dropout=0.0, mlp_slices="reference").label
    assert label == "FacT-TK (dropout=0.0, mlp_slices=reference)"
