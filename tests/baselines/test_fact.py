"""Tests each FacT slice against dense tensors: those of the paper, and those of the reference code."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorbench.methods import Geometry, Site
from tensorbench.methods.backbone import GATED_PROJECTIONS
from tensorbench.methods.lowrank import LowRankAdapter, Masks

from ..methods.oracle import (
    BASE,
    EVEN,
    RANK,
    SCALE,
    SMOLLM2,
    TOLERANCE,
    SpiedDropout,
    StackedOracle,
    Values,
    assert_uniform,
    factors,
    stacked,
    trained_forward,
)
from ..methods.toy import ToyBackbone


def owners(geometry: Geometry) -> list[str]:
    """The projection of each slice of a layer, in the order of the slices."""
    pieces = -(-geometry.mlp // geometry.hidden)
    return [
        name for name in geometry.projections for _ in range(pieces if name in ("gate", "fc1", "fc2") else 1)
    ]


class FacTOracle(StackedOracle):
    def sigmas(self, values: Values, geometry: Geometry) -> Tensor:
        """The Σ of every slice of all layers, (slice, r out, r in)."""
        raise NotImplementedError

    def ends(self, values: Values) -> tuple[Tensor, Tensor]:
        """The shared factors U (d, r) and V (d or H·h, r)."""
        raise NotImplementedError

    def slices(self, values: Values, geometry: Geometry) -> Callable[[int, str], list[Tensor]]:
        (u, v), sigmas = self.ends(values), self.sigmas(values, geometry)
        full = SCALE * torch.einsum("or,srq,iq->soi", v, sigmas, u)
        return stacked(full.unflatten(0, (geometry.layers, -1)), geometry, *GATED_PROJECTIONS)

    def dropped(self, values: Values, site: Site, x: Tensor, geometry: Geometry) -> Tensor:
        """Masks Σ·U·x, before V. In gate and fc1, one mask covers the concatenated Σ·U·x of all slices."""
        (u, v), names = self.ends(values), owners(geometry)
        of_layer = self.sigmas(values, geometry).unflatten(0, (geometry.layers, -1))[site.layer]
        sigmas = [sigma for sigma, name in zip(of_layer, names, strict=True) if name == site.projection]
        if site.projection in ("gate", "fc1"):
            narrow = torch.cat([x @ u @ sigma.T for sigma in sigmas], -1)
            chunks = (narrow * SpiedDropout.mask(narrow)).split(RANK, -1)
            return (
                SCALE
                * torch.cat([chunk @ v[: geometry.hidden].T for chunk in chunks], -1)[..., : geometry.mlp]
            )
        down, up = u, v
        if site.projection in self.turned(geometry):
            down, up, sigmas = v, u, [sigma.T for sigma in sigmas]
        parts = x.split(geometry.hidden, -1) if site.projection == "fc2" else (x,)
        narrow = sum(
            part @ down[: part.shape[-1]] @ sigma.T for part, sigma in zip(parts, sigmas, strict=True)
        )  # type: ignore[assignment]
        wide = (narrow * SpiedDropout.mask(narrow)) @ up.T
        if site.projection not in ("key", "value"):
            return SCALE * wide[..., : geometry.shape(site.projection)[0]]
        return SCALE * self.shared(wide[..., : geometry.attention_width].flatten(0, -2).T, geometry).T.view(
            *wide.shape[:-1], -1
        )

    def check_calls(self, calls: list[tuple[tuple[int, ...], float]], geometry: Geometry) -> None:
        pieces = -(-geometry.mlp // geometry.hidden)
        widths = [RANK * (pieces if name in ("gate", "fc1") else 1) for name in geometry.projections]
        assert [shape[-1] for shape, _ in calls] == widths * geometry.layers


class TestTensorTrain(FacTOracle):
    name = "fact_tt"
    zero = "factor_2"
    published = [
        ({"rank": 4}, BASE, 8_448),
        ({"rank": 8}, BASE, 21_504),
        ({"rank": 16}, BASE, 61_440),
        ({"rank": 4}, SMOLLM2, 4 * (576 + 576) + 13 * 30 * 4**2),
    ]

    def tensors(self, values: Values) -> dict[str, Tensor]:
        return {"tensor": torch.einsum("xia,asb,boy->iso", *factors(values))}

    def ends(self, values: Values) -> tuple[Tensor, Tensor]:
        first, _, last = factors(values)
        return first[0], last[..., 0].T

    def sigmas(self, values: Values, geometry: Geometry) -> Tensor:
        return factors(values)[1].permute(1, 2, 0)

    def formula(self, geometry: Geometry, rank: int) -> int:
        width = max(geometry.hidden, geometry.attention_width)
        return (geometry.hidden + width) * rank + len(owners(geometry)) * geometry.layers * rank**2

    def test_it_starts_as_linear_layers_do(self) -> None:
        rank = 8
        values = self.start(rank=rank)
        assert_uniform(values["tensor.factors.factor_0"], 1 / math.sqrt(BASE.hidden))
        sigmas = values["tensor.factors.factor_1"].unflatten(1, (BASE.layers, 12))
        assert_uniform(sigmas[:, :, :8], 1 / math.sqrt(rank))
        assert_uniform(sigmas[:, :, 8:], 1 / math.sqrt(4 * rank))

    def test_dropout_of_entries_where_downs_are_joined_and_outputs_sliced(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Tests dropout of single entries of ΔW with a full matrix between the down and the up factor.

        Only CaRA has this option, and its matrix is diagonal. So the dropout is added to FacT, whose slices
        have full matrices.
        """
        geometry = EVEN[0]
        method: Any = self.method()
        parametrisation = method.parametrise(geometry, torch.Generator().manual_seed(0))
        with torch.no_grad():
            parametrisation.tensor.factors[2].normal_(generator=torch.Generator().manual_seed(1))
        backbone = ToyBackbone(geometry)
        adapter = LowRankAdapter(backbone, parametrisation, Masks(0.3, 0), "update")
        spy = SpiedDropout(monkeypatch)
        for site, (x, y, frozen) in trained_forward(backbone, adapter).items():
            delta = adapter.delta(site).detach()
            torch.testing.assert_close(y, frozen + x @ (delta * spy.mask(delta)).T, **TOLERANCE)
        assert spy.calls == [(geometry.shape(p), 0.3) for p in geometry.projections] * geometry.layers


class TestTucker(FacTOracle):
    name = "fact_tk"
    zero = "factor_1"
    published = [
        ({"rank": 8}, BASE, 13_952),
        ({"rank": 16}, BASE, 30_976),
        ({"rank": 32}, BASE, 86_528),
        ({"rank": 4}, SMOLLM2, 4 * (576 + 576 + 13 * 30) + 4**3),
    ]

    def tensors(self, values: Values) -> dict[str, Tensor]:
        return {"tensor": torch.einsum("abc,ia,ob,sc->ios", values["tensor.core"], *factors(values))}

    def ends(self, values: Values) -> tuple[Tensor, Tensor]:
        u, v, _ = factors(values)
        return u, v

    def mixtures(self, values: Values) -> Tensor:
        """The mixtures C ×₃ P, (slice, a, b)."""
        return torch.einsum("abc,sc->sab", values["tensor.core"], factors(values)[2])

    def sigmas(self, values: Values, geometry: Geometry) -> Tensor:
        names = owners(geometry) * geometry.layers
        pairs = zip(self.mixtures(values), names, strict=True)
        return torch.stack([mixture if name == "fc2" else mixture.T for mixture, name in pairs])

    def formula(self, geometry: Geometry, rank: int) -> int:
        width = max(geometry.hidden, geometry.attention_width)
        return (geometry.hidden + width + len(owners(geometry)) * geometry.layers) * rank + rank**3

    def test_it_starts_uniform_by_xavier(self) -> None:
        rank = 16
        values = self.start(rank=rank)
        assert_uniform(values["tensor.factors.factor_0"], 1 / math.sqrt(BASE.hidden))
        assert_uniform(values["tensor.core"], math.sqrt(3) / rank)
        assert_uniform(values["tensor.factors.factor_2"], math.sqrt(6 / (12 * BASE.layers + rank)))


class TestTuckerOfTheReference(TestTucker):
    options = {**TestTucker.options, "mlp_slices": "reference"}

    def mixtures(self, values: Values) -> Tensor:
        """The mixtures as the reference code reads them.

        That code puts the n mixtures of a projection, which have r columns each, into one matrix. It writes
        column i of mixture s to column i·n + s of the matrix, but reads it from column s·r + i.
        """
        mixed = super().mixtures(values).clone()
        names = owners(self.geometry) * self.geometry.layers
        pieces = -(-self.geometry.mlp // self.geometry.hidden)
        start = 0
        while start < len(names):
            if names[start] in ("gate", "fc1", "fc2"):
                own = mixed[start : start + pieces].clone()
                for a in range(RANK):
                    for c in range(pieces * RANK):
                        mixed[start + c // RANK, a, c % RANK] = own[c % pieces, a, c // pieces]
                start += pieces
            else:
                start += 1
        return mixed

    def sigmas(self, values: Values, geometry: Geometry) -> Tensor:
        self.geometry = geometry
        return super().sigmas(values, geometry)
