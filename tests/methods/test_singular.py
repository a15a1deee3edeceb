"""Tests that the decompositions of weights are kept for the next adapter, and not without bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.utils import extmath

from tensorbench.methods import create, singular
from tensorbench.methods.backbone import Geometry
from tensorbench.methods.skeleton import SkeletonBackbone


@pytest.fixture
def decompositions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ranks of all decompositions that are computed."""
    ranks: list[int] = []
    real = extmath.randomized_svd

    def recorded(matrix: Any, rank: int, **options: Any) -> Any:
        ranks.append(rank)
        return real(matrix, rank, **options)

    monkeypatch.setattr(extmath, "randomized_svd", recorded)
    monkeypatch.setattr(singular, "_kept", type(singular._kept)())
    return ranks


@pytest.mark.parametrize("name", ["lora_xs", "abba"])
def test_a_second_adapter_starts_from_the_decompositions_of_the_first(
    name: str, decompositions: list[int]
) -> None:
    torch.manual_seed(0)
    backbone = SkeletonBackbone.random(Geometry(24, 3, 2, 60))
    method = create(name, rank=2, targets="qkvo")
    states = []
    for _ in range(2):
        adapter = method.attach(backbone, torch.Generator().manual_seed(0))
        states.append({**adapter.state(), **adapter.frozen()})
        adapter.detach()
    assert decompositions == [2] * 8
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_another_rank_or_weight_is_decomposed_anew(decompositions: list[int]) -> None:
    weight = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    for rank, changed in ((2, weight), (3, weight), (2, weight + 1), (2, weight.clone())):
        u, s, vh = singular.singular(changed, rank)
        assert (u.shape, s.shape, vh.shape) == ((8, rank), (rank,), (rank, 6))
    assert decompositions == [2, 3, 2]


def test_what_is_kept_has_a_bound_and_the_last_use_counts(
    decompositions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(singular, "MOST_BYTES", 2 * 8 * (8 + 1 + 8))
    for index in (0, 1, 0, 2, 0, 1):
        singular.singular(weights[index], 1)
    assert len(decompositions) == 4
