"""Tests the contents of `import tensorbench.methods` besides the methods themselves."""

from __future__ import annotations

import pytest
import torch

from tensorbench.methods import Adapter, Geometry, Method, Site, UserError, attach, create

from ..messages import naming
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


@pytest.mark.parametrize("name", ["lora", "lotr"])
def test_a_merged_adapter_refuses_a_state(name: str) -> None:
    backbone = ToyBackbone(GEOMETRY)
    adapter = attach(backbone, create(name, rank=2))
    state = {key: value + 1 for key, value in adapter.state().items()}
    adapter.merge()
    with pytest.raises(UserError, match="unmerge"):
        adapter.load(state)
    adapter.unmerge()
    adapter.load(state)
    assert all(torch.equal(value, state[key]) for key, value in adapter.state().items())


@pytest.mark.parametrize("rank", [0, -1])
@pytest.mark.parametrize("method", [create("lotr"), create("lora"), create("tenslora", variant="att")])
def test_ranks_below_one_are_refused(method: Method, rank: int) -> None:
    with pytest.raises(UserError, match=naming("at least", 1, rank)):
        method.isorank(rank)
    with pytest.raises(UserError, match=naming("at least", 1, rank)):
        method.with_size((rank,) * len(method.rank_names))


def test_as_many_ranks_as_names_are_accepted() -> None:
    with pytest.raises(UserError, match=naming(3, 2)):
        create("tenslora", variant="qkv").with_size((2, 2))


def test_sites_come_layer_by_layer_in_the_order_asked_for() -> None:
    sites = [Site(0, "value"), Site(0, "fc1"), Site(1, "value"), Site(1, "fc1")]
    assert GEOMETRY.sites(("value", "fc1")) == sites
    assert list(map(str, sites)) == ["0.value", "0.fc1", "1.value", "1.fc1"]
