"""CaRA against its two CP tensors, built in full, and its biases; the two places of its dropout."""

from __future__ import annotations

import math

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
    parameters,
    start,
    trained_forward,
)

SCALE = 1.7
RANK = 3


def full_tensors(values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    attention = [values[f"attention.factors.factor_{i}"] for i in range(4)]
    mlp = [values[f"mlp.factors.factor_{i}"] for i in range(3)]
    return (
        torch.einsum("r,kr,er,Hr,hr->keHh", values["attention.weights"], *attention),
        torch.einsum("r,kr,ar,br->kab", values["mlp.weights"], *mlp),
    )


def oracle(values: dict[str, Tensor], geometry: Geometry) -> Dense:
    attention, mlp = full_tensors(values)
    d = geometry.hidden
    dense: Dense = {}
    for layer in range(geometry.layers):
        for position, projection in enumerate(("query", "key", "value")):
            update = torch.zeros(d, d, dtype=attention.dtype)
            for head in range(geometry.heads):
                for j in range(geometry.head_size):
                    update[head * geometry.head_size + j] = attention[3 * layer + position, :, head, j]
            dense[Site(layer, projection)] = SCALE * update, None
        dense[Site(layer, "output")] = SCALE * mlp[9 * layer], SCALE * values["biases.output"]
        fc1 = torch.zeros(4 * d, d, dtype=mlp.dtype)
        fc2 = torch.zeros(d, 4 * d, dtype=mlp.dtype)
        for chunk in range(4):
            for second in range(d):
                fc1[chunk * d + second] = mlp[9 * layer + 1 + chunk, second]
                fc2[:, chunk * d + second] = mlp[9 * layer + 5 + chunk, second]
        dense[Site(layer, "fc1")] = SCALE * fc1, SCALE * values["biases.fc1"]
        dense[Site(layer, "fc2")] = SCALE * fc2, SCALE * values["biases.fc2"]
    return dense


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("dropout_on", ["activation", "update"])
def test_equals_the_dense_formula(dropout_on: str, geometry: Geometry) -> None:
    check_against(oracle, "cara", geometry, rank=RANK, scale=SCALE, dropout_on=dropout_on)


def test_the_containers_hold_the_tensors() -> None:
    _, adapter = attach("cara", GEOMETRIES[0], rank=RANK)
    attention, mlp = full_tensors(parameters(adapter))
    parametrisation = adapter.parametrisation
    torch.testing.assert_close(parametrisation.attention.to_tensor().detach(), attention, **TOLERANCE)
    torch.testing.assert_close(parametrisation.mlp.to_tensor().detach(), mlp, **TOLERANCE)


@pytest.mark.parametrize(("rank", "published"), [(8, 24_816), (16, 45_024), (32, 85_440)])
def test_published_counts(rank: int, published: int) -> None:
    check_count("cara", BASE, rank, published)
    biases = [value.numel() for key, value in start("cara", rank=1).items() if "biases" in key]
    assert sum(biases) == 4_608


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_counts(geometry: Geometry) -> None:
    d, layers = geometry.hidden, geometry.layers
    modes = (3 * layers + d + geometry.heads + geometry.head_size + 1) + (9 * layers + 2 * d + 1)
    for r in (1, 3, 40):
        check_count("cara", geometry, r, r * modes + 6 * d)


def test_fit_is_the_nearest() -> None:
    check_fit("cara", BASE)
    check_fit("cara", GEOMETRIES[1])


@pytest.mark.parametrize("dropout_on", ["activation", "update"])
def test_starts_at_zero_by_the_second_modes_and_the_biases(dropout_on: str) -> None:
    seconds = {"attention.factors.factor_1", "mlp.factors.factor_1"}
    biases = {"biases.output", "biases.fc1", "biases.fc2"}
    check_start("cara", GEOMETRIES[0], seconds | biases, rank=RANK, scale=10.0, dropout_on=dropout_on)
    check_seeds("cara", rank=RANK, lambda_std=0.1)


def test_first_modes_start_xavier_normal_and_the_rest_orthogonal() -> None:
    rank = 32
    values = start("cara", rank=rank)
    for tensor, slices in (("attention", 3 * BASE.layers), ("mlp", 9 * BASE.layers)):
        first = values[f"{tensor}.factors.factor_0"]
        assert first.shape == (slices, rank)
        std = math.sqrt(2 / (slices + rank))
        assert abs(first.std() / std - 1) < 0.06
        assert abs(first.mean()) < 0.1 * std
        # Beyond √3 standard deviations, where a uniform of the same spread ends.
        assert first.abs().max() > 2.5 * std
    for name in ("attention.factors.factor_2", "attention.factors.factor_3", "mlp.factors.factor_2"):
        factor = values[name]
        gram = factor.T @ factor if factor.shape[0] >= rank else factor @ factor.T
        torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-5, rtol=0)
    assert torch.equal(values["attention.weights"], torch.ones(rank))
    assert torch.equal(values["mlp.weights"], torch.ones(rank))


def test_lambda_starts_as_asked() -> None:
    values = start("cara", rank=4_000, lambda_mean=1.08, lambda_std=0.028)
    for name in ("attention.weights", "mlp.weights"):
        assert abs(values[name].mean() - 1.08) < 0.003
        assert abs(values[name].std() / 0.028 - 1) < 0.05
    assert torch.equal(start("cara", rank=5, lambda_mean=1.3)["mlp.weights"], torch.full((5,), 1.3))


def test_dropout_drops_the_rank_wide_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = GEOMETRIES[0]
    backbone, adapter = attach("cara", geometry, rank=RANK, scale=SCALE)
    spy = SpiedDropout(monkeypatch)
    x = inputs(geometry)
    seen = trained_forward(backbone, x)
    # One mask for each site, though query, key and value share their down projection.
    assert spy.calls == [((x[..., 0].numel(), RANK), 0.1)] * 6 * geometry.layers

    # On the activation that the first factor along the input gives, before anything mixes the ranks:
    # ΔW·x is a sum over ranks, and the mask picks among its terms.
    values = parameters(adapter)
    terms = [
        oracle({k: v[..., [i]] if "biases" not in k else v for k, v in values.items()}, geometry)
        for i in range(RANK)
    ]
    for site, (x, y, frozen) in seen.items():
        mask = spy.mask(x[..., :RANK])
        update = sum(mask[..., [i]] * (x @ terms[i][site][0].T) for i in range(RANK))
        bias = terms[0][site][1]
        assert isinstance(update, Tensor)
        expected = frozen + update + (0 if bias is None else bias)
        torch.testing.assert_close(y, expected, **TOLERANCE)
    assert len(seen) == 6 * geometry.layers


def test_published_dropout_drops_the_entries_of_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = GEOMETRIES[0]
    backbone, adapter = attach("cara", geometry, rank=RANK, scale=SCALE, dropout_on="update", dropout=0.3)
    spy = SpiedDropout(monkeypatch)
    x = inputs(geometry)
    seen = trained_forward(backbone, x)
    assert spy.calls == [(geometry.shape(p), 0.3) for p in geometry.projections] * geometry.layers
    dense = oracle(parameters(adapter), geometry)
    for site, (x, y, frozen) in seen.items():
        weight, bias = dense[site]
        expected = frozen + x @ (weight * spy.mask(weight)).T + (0 if bias is None else bias)
        torch.testing.assert_close(y, expected, **TOLERANCE)
    assert len(seen) == 6 * geometry.layers
    # In evaluation nothing is dropped.
    spy.calls.clear()
    backbone.module(inputs(geometry))
    assert spy.calls == []


def test_gradients_reach_every_parameter_through_the_dropped_update() -> None:
    geometry = GEOMETRIES[0]
    backbone, adapter = attach("cara", geometry, rank=RANK, dropout_on="update", dropout=0.5)
    backbone.module.train()
    first, second = (backbone.module(inputs(geometry)) for _ in range(2))
    assert not torch.equal(first, second)
    first.square().sum().backward()
    for name, parameter in adapter.named_parameters().items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_where_dropout_sits_is_part_of_a_trial_only_if_there_is_any() -> None:
    dropped = methods.create("cara", rank=4, dropout_on="update")
    assert dropped.identity() != methods.create("cara", rank=4).identity()
    assert dropped.label == "CaRA (dropout_on=update)"
    none = methods.create("cara", rank=4, dropout=0.0, dropout_on="update")
    assert none.identity() == methods.create("cara", rank=4, dropout=0.0).identity()
    assert none.label == "CaRA (dropout=0.0)"
