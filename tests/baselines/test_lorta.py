"""LoRTA against its CP sum, entry by entry of the five-way tensor."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import methods
from methods import PROJECTIONS, Geometry, Site

from .dense import (
    BASE,
    GEOMETRIES,
    TOLERANCE,
    Dense,
    attach,
    check_against,
    check_count,
    check_fit,
    check_seeds,
    check_start,
    start,
)

SCALE = 1.7
RANK = 3
FACTOR = "tensor.factors.factor_{}"


def full_tensor(values: dict[str, Tensor]) -> Tensor:
    """Σ_ρ A[d, ρ] · B[h, ρ] · C[H, ρ] · D[L, ρ] · E[p, ρ]."""
    factors = [values[FACTOR.format(i)] for i in range(5)]
    return torch.einsum("dr,hr,Hr,Lr,pr->dhHLp", *factors)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("orientation", ["reference", "output_heads"])
def test_equals_the_dense_formula(orientation: str, geometry: Geometry) -> None:
    def oracle(values: dict[str, Tensor], geometry: Geometry) -> Dense:
        full = full_tensor(values) * SCALE / RANK
        dense: Dense = {}
        for layer in range(geometry.layers):
            for position, projection in enumerate(PROJECTIONS[:4]):
                update = torch.zeros(geometry.hidden, geometry.hidden, dtype=full.dtype)
                for head in range(geometry.heads):
                    for j in range(geometry.head_size):
                        channel = head * geometry.head_size + j
                        whole = full[:, j, head, layer, position]
                        if orientation == "reference":
                            update[:, channel] = whole
                        else:
                            update[channel, :] = whole
                dense[Site(layer, projection)] = update, None
        return dense

    check_against(oracle, "lorta", geometry, rank=RANK, scale=SCALE, orientation=orientation)


def test_the_orientations_are_each_others_transpose() -> None:
    geometry = GEOMETRIES[0]
    _, reference = attach("lorta", geometry, rank=RANK)
    _, output_heads = attach("lorta", geometry, rank=RANK, orientation="output_heads")
    for site in reference.factors():
        ours, theirs = output_heads.delta(site), reference.delta(site)
        torch.testing.assert_close(ours, theirs.T, **TOLERANCE)
        assert not torch.allclose(ours, theirs)


@pytest.mark.parametrize("orientation", ["reference", "output_heads"])
def test_a_head_is_a_block_on_the_split_side(orientation: str) -> None:
    """With one head's entry alone in the head factor, only that head's channels are updated."""
    geometry = GEOMETRIES[1]
    _, adapter = attach("lorta", geometry, rank=RANK, orientation=orientation)
    heads = adapter.named_parameters()[FACTOR.format(2)]
    with torch.no_grad():
        heads[torch.arange(geometry.heads) != 2] = 0
    size = geometry.head_size
    for site in adapter.factors():
        delta = adapter.delta(site).detach()
        touched = delta.any(0) if orientation == "reference" else delta.any(1)
        assert touched.nonzero().flatten().tolist() == list(range(2 * size, 3 * size))


def test_the_container_holds_the_tensor() -> None:
    _, adapter = attach("lorta", GEOMETRIES[0], rank=RANK)
    values = {key: value.detach() for key, value in adapter.named_parameters().items()}
    full = adapter.parametrisation.tensor.to_tensor().detach()
    torch.testing.assert_close(full, full_tensor(values), **TOLERANCE)


@pytest.mark.parametrize(("rank", "published"), [(4, 3_440), (8, 6_880), (64, 55_040), (256, 220_160)])
def test_published_counts(rank: int, published: int) -> None:
    check_count("lorta", BASE, rank, published)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_counts(geometry: Geometry) -> None:
    modes = geometry.hidden + geometry.head_size + geometry.heads + geometry.layers + 4
    for r in (1, 3, 40):
        check_count("lorta", geometry, r, r * modes)
        check_count("lorta", geometry, r, r * modes, orientation="output_heads")


def test_fit_is_the_nearest() -> None:
    check_fit("lorta", BASE)
    check_fit("lorta", GEOMETRIES[1])


@pytest.mark.parametrize("orientation", ["reference", "output_heads"])
def test_starts_at_zero_by_the_head_size_factor_alone(orientation: str) -> None:
    check_start("lorta", GEOMETRIES[0], {FACTOR.format(1)}, rank=RANK, orientation=orientation)
    check_seeds("lorta", rank=RANK, orientation=orientation)


def test_the_rest_starts_uniform() -> None:
    rank = 256
    values = start("lorta", rank=rank)
    others = math.sqrt(6 / rank)
    for index, bound in ((0, 1 / math.sqrt(rank)), (2, others), (3, others), (4, others)):
        factor = values[FACTOR.format(index)]
        assert 0.98 * bound < factor.abs().max() <= bound
        assert abs(factor.std() / (bound / math.sqrt(3)) - 1) < 0.05
        assert abs(factor.mean()) < 0.06 * bound


def test_labels() -> None:
    assert methods.create("lorta", rank=4).label == "LoRTA"
    label = methods.create("lorta", rank=4, orientation="output_heads").label
    assert label == "LoRTA (orientation=output_heads)"
