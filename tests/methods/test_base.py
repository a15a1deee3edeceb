"""Tests the contents of `import methods` besides the methods themselves."""

from __future__ import annotations

import pytest
import torch

from methods import Adapter, Geometry, Site, UserError, attach, create

from .toy import ToyBackbone

GEOMETRY = Geometry(12, 3, 2, 48)


def started(seed: int) -> Adapter:
    return attach(ToyBackbone(GEOMETRY), create("tenslora", variant="att").isorank(2), seed)


def test_the_same_seed_attaches_the_same_start() -> None:
    first, same, other = (
        torch.cat([p.flatten() for p in started(seed).state().values()]) for seed in (3, 3, 4)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_nothing_is_attached_while_ranks_are_free() -> None:
    backbone = ToyBackbone(GEOMETRY)
    with pytest.raises(UserError, match="ranks are free"):
        attach(backbone, create("tenslora", variant="att"))
    assert all(parameter.requires_grad for parameter in backbone.module.parameters())


def test_sites_come_layer_by_layer_in_the_order_asked_for() -> None:
    sites = [Site(0, "value"), Site(0, "fc1"), Site(1, "value"), Site(1, "fc1")]
    assert GEOMETRY.sites(("value", "fc1")) == sites
    assert list(map(str, sites)) == ["0.value", "0.fc1", "1.value", "1.fc1"]
