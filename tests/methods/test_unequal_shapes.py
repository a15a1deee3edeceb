"""Tests geometries of unequal shapes. The updates there are checked by every method's oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tensorbench.methods import Geometry, UserError, create
from tensorbench.methods.lowrank import Masks

from .oracle import UNEQUAL
from .toy import attached

WIDER, *_ = UNEQUAL


@pytest.mark.parametrize(
    ("name", "options"),
    [("fact_tt", {}), ("cara", {"dropout_on": "update"}), ("cara", {}), ("tenslora", {"variant": "qkv"})],
)
def test_a_training_forward_is_that_of_evaluation_but_for_what_is_dropped(
    monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    """Covers each place of dropout. The geometry's MLP is no whole number of slices."""
    monkeypatch.setattr(Masks, "drop", lambda masks, x, place: x * 2)
    backbone, adapter = attached(WIDER, name, dropout=0.5, **options)
    backbone.module.train()
    with torch.no_grad():
        trained = backbone.module(backbone.inputs())
        for parameter in adapter.named_parameters().values():
            parameter.mul_(0)
        bare = backbone.module.eval()(backbone.inputs())
    other, twice = attached(WIDER, name, scale=2.0, **options)
    with torch.no_grad():
        for bias in getattr(twice.parametrisation, "biases", {}).values():
            bias.div_(2)  # biases bypass dropout
        torch.testing.assert_close(other.module.eval()(other.inputs()), trained, rtol=1e-10, atol=1e-10)
    assert (trained - bare).abs().max() > 1e-3


def test_sharing_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(UserError, match=r"9 query heads.* 2 key"):
        Geometry(36, 9, 2, 30, kv_heads=2)
    with pytest.raises(UserError, match=r"head_size .*0"):
        Geometry(36, 9, 2, 30, head_size=0)


def test_a_geometry_of_full_attention_is_what_it_was() -> None:
    assert Geometry(24, 4, 3, 96) == Geometry(24, 4, 3, 96, kv_heads=4, head_size=6)
    assert str(Geometry(24, 4, 3, 96)) == "d=24, H=4, L=3, mlp=96"
    assert str(WIDER) == "d=24, H=9, K=3, h=4, L=2, mlp=60, gated"


def test_sharing_is_in_an_identity_only_where_it_was_chosen() -> None:
    assert "shared_heads" not in create("lotr", rank=2).identity()
    assert create("lotr", rank=2, shared_heads="cut").identity()["shared_heads"] == "cut"
