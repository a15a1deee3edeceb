"""Tests CaRA's updates against its two CP tensors built in full, its biases, and both places of dropout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tensorbench.methods import Geometry, Site, create
from tensorbench.methods.backbone import GATED_PROJECTIONS

from ..methods.oracle import BASE, RANK, SCALE, SMOLLM2, SpiedDropout, StackedOracle, Values, factors, stacked


class TestCaRA(StackedOracle):
    name = "cara"
    zero = r"factor_1|biases"
    published = [
        ({"rank": 8}, BASE, 24_816),
        ({"rank": 16}, BASE, 45_024),
        ({"rank": 32}, BASE, 85_440),
        (
            {"rank": 4},
            SMOLLM2,
            4 * (90 + 576 + 9 + 64 + 1) + 4 * (10 * 30 + 576 + 576 + 1) + 2 * 576 + 2 * 1536,
        ),
    ]

    def tensors(self, values: Values) -> dict[str, Tensor]:
        attention, mlp = (factors(values, name) for name in ("attention", "mlp"))
        return {
            "attention": torch.einsum("r,kr,er,Hr,hr->keHh", values["attention.weights"], *attention),
            "mlp": torch.einsum("r,kr,ar,br->kab", values["mlp.weights"], *mlp),
        }

    def slices(self, values: Values, geometry: Geometry) -> Callable[[int, str], list[Tensor]]:
        tensors = self.tensors(values)
        attention = SCALE * tensors["attention"].permute(0, 2, 3, 1).flatten(1, 2)
        own = stacked(attention.unflatten(0, (geometry.layers, -1)), geometry, *GATED_PROJECTIONS[:3])
        mlp = SCALE * tensors["mlp"].unflatten(0, (geometry.layers, -1))
        rest = stacked(mlp, geometry, *GATED_PROJECTIONS[3:])

        def of(layer: int, name: str) -> list[Tensor]:
            # The second mode is the output of `output` and fc1, and the input of fc2.
            if name == "fc2":
                return [matrix[:, : geometry.hidden].T for matrix in rest(layer, name)]
            return (own if name in GATED_PROJECTIONS[:3] else rest)(layer, name)

        return of

    def turned(self, geometry: Geometry) -> set[str]:
        return set()

    def biases(self, values: Values) -> Values:
        return {key[7:]: SCALE * value for key, value in values.items() if key.startswith("biases.")}

    def formula(self, geometry: Geometry, rank: int) -> int:
        pieces, width = -(-geometry.mlp // geometry.hidden), max(geometry.hidden, geometry.attention_width)
        slices = 1 + pieces * (3 if geometry.gated else 2)
        attention = 3 * geometry.layers + geometry.hidden + geometry.heads + geometry.head_size + 1
        mlp = slices * geometry.layers + geometry.hidden + width + 1
        return rank * (attention + mlp) + 2 * geometry.hidden + (2 if geometry.gated else 1) * geometry.mlp

    def dropped(self, values: Values, site: Site, x: Tensor, geometry: Geometry) -> Tensor:
        """Dropout on the r-wide activation: ΔW·x is a sum of r rank-one terms, each masked."""
        mask = SpiedDropout.mask(x[..., :RANK])
        terms = []
        for i in range(RANK):
            rank_one = {k: v if "biases" in k else v[..., [i]] for k, v in values.items()}
            terms.append(mask[..., [i]] * (x @ self.dense(rank_one, geometry)[site][0].T))
        return torch.stack(terms).sum(0)

    def check_calls(self, calls: list[tuple[tuple[int, ...], float]], geometry: Geometry) -> None:
        """Expects one mask per site, although query, key and value share their down projection."""
        assert calls == [((6, RANK), 0.3)] * len(geometry.projections) * geometry.layers

    def test_first_modes_start_xavier_normal_and_the_rest_orthogonal(self) -> None:
        rank = 32
        values = self.start(rank=rank)
        for tensor, slices in (("attention", 3 * BASE.layers), ("mlp", 9 * BASE.layers)):
            first, _, *rest = factors(values, tensor)
            assert first.shape == (slices, rank)
            std = math.sqrt(2 / (slices + rank))
            assert abs(first.std() / std - 1) < 0.06
            assert abs(first.mean()) < 0.1 * std
            # A uniform distribution of the same spread ends at √3 standard deviations.
            assert first.abs().max() > 2.5 * std
            for factor in rest:
                gram = factor.T @ factor if factor.shape[0] >= rank else factor @ factor.T
                torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-5, rtol=0)
            assert torch.equal(values[f"{tensor}.weights"], torch.ones(rank))

    def test_lambda_starts_by_its_options(self) -> None:
        values = self.start(rank=4_000, lambda_mean=1.08, lambda_std=0.028)
        for name in ("attention.weights", "mlp.weights"):
            assert abs(values[name].mean() - 1.08) < 0.003
            assert abs(values[name].std() / 0.028 - 1) < 0.05
        assert torch.equal(self.start(rank=5, lambda_mean=1.3)["mlp.weights"], torch.full((5,), 1.3))


class TestPublishedDropout(TestCaRA):
    options: dict[str, Any] = {**TestCaRA.options, "dropout_on": "update"}
    dropout_at = "update"

    def dropped(self, values: Values, site: Site, x: Tensor, geometry: Geometry) -> Tensor:
        return super(TestCaRA, self).dropped(values, site, x, geometry)

    def check_calls(self, calls: list[tuple[tuple[int, ...], float]], geometry: Geometry) -> None:
        super(TestCaRA, self).check_calls(calls, geometry)

    def test_gradients_reach_every_parameter_through_the_dropped_update(self) -> None:
        backbone, adapter = self.attached(self.geometries[0], dropout=0.5)
        backbone.module.train()
        first, second = (backbone.module(backbone.inputs()) for _ in range(2))
        assert not torch.equal(first, second)
        first.square().sum().backward()
        for name, parameter in adapter.named_parameters().items():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_the_place_of_dropout_is_part_of_an_identity_only_with_dropout() -> None:
    dropped = create("cara", rank=4, dropout_on="update")
    assert dropped.identity() != create("cara", rank=4).identity()
    assert dropped.label == "CaRA (dropout_on=update)"
    none = create("cara", rank=4, dropout=0.0, dropout_on="update")
    assert none.identity() == create("cara", rank=4, dropout=0.0).identity()
    assert none.label == "CaRA (dropout=0.0)"
