"""LoTR against (scale / r) · x·right·M·left, matrix by matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import methods
from methods import Geometry, Site

from .dense import (
    BASE,
    GEOMETRIES,
    TOLERANCE,
    Dense,
    SpiedDropout,
    attach,
    check_against,
    check_count,
    check_fit,
    check_seeds,
    check_start,
    inputs,
    start,
    trained_forward,
)

SCALE = 1.7
RANK = 3


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("tensors", ["joint", "separate"])
def test_equals_the_dense_formula(tensors: str, geometry: Geometry) -> None:
    def oracle(values: dict[str, Tensor], geometry: Geometry) -> Dense:
        dense: Dense = {}
        for layer in range(geometry.layers):
            for position, projection in enumerate(("query", "value")):
                which, index = (0, 2 * layer + position) if tensors == "joint" else (position, layer)
                right = values[f"tensors.{which}.factors.factor_0"][0]
                middle = values[f"tensors.{which}.factors.factor_1"][:, index]
                left = values[f"tensors.{which}.factors.factor_2"][:, :, 0]
                # Row vectors: x·right·M·left is (in, out), the weight is its transpose.
                update = torch.einsum("ia,ab,bo->io", right, middle, left) * SCALE / RANK
                dense[Site(layer, projection)] = update.T, None
        return dense

    check_against(oracle, "lotr", geometry, rank=RANK, scale=SCALE, tensors=tensors)


def test_the_container_holds_the_updates() -> None:
    geometry = GEOMETRIES[0]
    _, adapter = attach("lotr", geometry, rank=RANK, scale=float(RANK))
    full = adapter.parametrisation.tensors[0].to_tensor().detach()
    assert full.shape == (geometry.hidden, 2 * geometry.layers, geometry.hidden)
    for layer in range(geometry.layers):
        delta = adapter.delta(Site(layer, "value")).detach()
        torch.testing.assert_close(delta, full[:, 2 * layer + 1].T, **TOLERANCE)


@pytest.mark.parametrize(("rank", "published"), [(4, 6_528), (8, 13_824), (16, 30_720), (32, 73_728)])
def test_published_counts(rank: int, published: int) -> None:
    check_count("lotr", BASE, rank, published)
    # A second pair of ends and nothing else.
    check_count("lotr", BASE, rank, published + 2 * BASE.hidden * rank, tensors="separate")


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_counts(geometry: Geometry) -> None:
    d, layers = geometry.hidden, geometry.layers
    for r in (1, 3, 40):
        check_count("lotr", geometry, r, 2 * d * r + 2 * layers * r**2)
        check_count("lotr", geometry, r, 4 * d * r + 2 * layers * r**2, tensors="separate")


@pytest.mark.parametrize("tensors", ["joint", "separate"])
def test_fit_is_the_nearest(tensors: str) -> None:
    check_fit("lotr", BASE, tensors=tensors)
    check_fit("lotr", GEOMETRIES[1], tensors=tensors)


def test_starts_at_zero_by_the_middles_alone() -> None:
    check_start("lotr", GEOMETRIES[0], {"tensors.0.factors.factor_1"}, rank=RANK)
    middles = {"tensors.0.factors.factor_1", "tensors.1.factors.factor_1"}
    check_start("lotr", GEOMETRIES[0], middles, rank=RANK, tensors="separate")
    check_seeds("lotr", rank=RANK)


def test_ends_start_normal() -> None:
    values = start("lotr", rank=32, tensors="separate")
    ends = [value for key, value in values.items() if not key.endswith("factor_1")]
    assert len(ends) == 4
    for end in ends:
        assert abs(end.mean()) < 0.03
        assert abs(end.std() - 1) < 0.03
        # More than three standard deviations: not a uniform of the same spread.
        assert end.abs().max() > 3
    assert not torch.equal(ends[0], ends[2])


def test_published_without_dropout_and_divided_by_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = GEOMETRIES[0]
    spy = SpiedDropout(monkeypatch)
    backbone, adapter = attach("lotr", geometry, rank=RANK)
    seen = trained_forward(backbone, inputs(geometry))
    assert spy.calls == []
    assert set(seen) == {Site(layer, name) for layer in range(3) for name in ("query", "value")}
    for site, (x, y, frozen) in seen.items():
        torch.testing.assert_close(y, frozen + x @ adapter.delta(site).detach().T, **TOLERANCE)


def test_labels() -> None:
    assert methods.create("lotr", rank=4).label == "LoTR"
    assert methods.create("lotr", rank=4, tensors="separate").label == "LoTR (tensors=separate)"
