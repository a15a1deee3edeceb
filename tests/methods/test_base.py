"""Tests the contents of `import tensorbench.methods` besides the methods themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tensorbench.methods import Geometry, Method, Site, UserError, attach, create

from ..messages import naming
from .oracle import UNEQUAL
from .toy import ToyBackbone

GEOMETRY = Geometry(12, 3, 2, 48)


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


@pytest.mark.parametrize("rank", [4.5, 4.0, True, "4", None])
@pytest.mark.parametrize("method", [create("lora"), create("tenslora", variant="att")])
def test_ranks_that_are_no_whole_numbers_are_refused(method: Method, rank: Any) -> None:
    with pytest.raises(UserError, match=naming("whole numbers", f"(got {rank!r}")):
        method.isorank(rank)
    with pytest.raises(UserError, match=naming("whole numbers", repr(rank))):
        method.with_size((2,) * (len(method.rank_names) - 1) + (rank,))


@pytest.mark.parametrize("method", [create("lora"), create("tenslora", variant="att")])
def test_whole_numbers_of_numpy_become_those_of_python(method: Method) -> None:
    for sized in (method.isorank(np.int64(2)), method.with_size(np.full(len(method.rank_names), 2))):
        assert sized.identity() == method.isorank(2).identity()
        assert {type(rank) for rank in sized.size or ()} == {int}


@pytest.mark.parametrize(
    ("name", "options", "label"),
    [
        ("fact_tt", {}, "FacT-TT"),
        (
            "fact_tk",
            {"dropout": 0.0, "mlp_slices": "reference"},
            "FacT-TK (dropout=0.0, mlp_slices=reference)",
        ),
        ("lotr", {}, "LoTR"),
        ("lotr", {"tensors": "separate"}, "LoTR (tensors=separate)"),
        ("lorta", {}, "LoRTA"),
        ("lorta", {"orientation": "output_heads"}, "LoRTA (orientation=output_heads)"),
        ("metatt", {"modes": "5d"}, "MetaTT-5D"),
        ("quanta", {"axes": (4, 3, 2)}, "QuanTA"),
        ("loretta_rep", {"start": "zero"}, "LoRETTA-rep (start=zero)"),
        ("cdka", {}, "CDKA"),
        ("cdka", {"r2": 8}, "CDKA (r2=8)"),
        ("abba", {}, "ABBA"),
        ("loha_kr", {}, "LoHa-KR"),
        ("flora", {}, "FLoRA"),
        ("more", {"blocks": 8}, "MoRe (blocks=8)"),
        ("kadaptation", {}, "KAdaptation"),
        ("kradapter", {}, "KRAdapter"),
    ],
)
def test_labels(name: str, options: dict[str, Any], label: str) -> None:
    method = create(name, **options)
    assert (method.isorank(4) if method.size is None else method).label == label


def test_as_many_ranks_as_names_are_accepted() -> None:
    with pytest.raises(UserError, match=naming(3, 2)):
        create("tenslora", variant="qkv").with_size((2, 2))


def test_sites_come_layer_by_layer_in_the_order_asked_for() -> None:
    sites = [Site(0, "value"), Site(0, "fc1"), Site(1, "value"), Site(1, "fc1")]
    assert GEOMETRY.sites(("value", "fc1")) == sites
    assert list(map(str, sites)) == ["0.value", "0.fc1", "1.value", "1.fc1"]


def test_sharing_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(UserError, match=r"9 query heads.* 2 key"):
        Geometry(36, 9, 2, 30, kv_heads=2)
    with pytest.raises(UserError, match=r"head_size .*0"):
        Geometry(36, 9, 2, 30, head_size=0)


def test_a_geometry_of_full_attention_is_what_it_was() -> None:
    assert Geometry(24, 4, 3, 96) == Geometry(24, 4, 3, 96, kv_heads=4, head_size=6)
    assert str(Geometry(24, 4, 3, 96)) == "d=24, H=4, L=3, mlp=96"
    assert str(UNEQUAL[0]) == "d=24, H=9, K=3, h=4, L=2, mlp=60, gated"
