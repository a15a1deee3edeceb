"""What every stacking method does where sites have unequal shapes, against tensors built in full.

The update tensor of the model with full attention is built densely, and its slices are averaged over the
query heads that share a head, or cut, one matrix at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from methods import Geometry, Site, UserError, create
from methods.lowrank import Masks, StackedMethod
from methods.tenslora import VARIANTS

from ..messages import naming
from .toy import attached

#: Shared heads and a gated MLP that is no whole number of slices. The attention is wider than d, narrower,
#: and as wide; there the MLP is narrower than d.
WIDER = Geometry(24, 9, 2, 60, kv_heads=3, head_size=4, gated=True)
NARROWER = Geometry(40, 9, 2, 100, kv_heads=3, head_size=4, gated=True)
EVEN = Geometry(36, 9, 2, 30, kv_heads=3, gated=True)
GEOMETRIES = (WIDER, NARROWER, EVEN)

#: SmolLM2-135M.
SMOLLM2 = Geometry(576, 9, 30, 1536, kv_heads=3, gated=True)

#: Of a layer and projection: its slices, each (H·h or d, d), the second the d-sized mode.
Slices = Callable[[int, str], list[Tensor]]


def stacked(full: Tensor, geometry: Geometry, *projections: str) -> Slices:
    """From a tensor (layer, slice, H·h or d, d) whose slices are of these projections in this order."""
    pieces = -(-geometry.mlp // geometry.hidden)
    owners = [name for name in projections for _ in range(pieces if name in ("gate", "fc1", "fc2") else 1)]
    assert full.shape[1] == len(owners)
    return lambda layer, name: [full[layer, i] for i, owner in enumerate(owners) if owner == name]


ALL = ("query", "key", "value", "output", "gate", "fc1", "fc2")


def fact_tt(of: Any, geometry: Geometry) -> Slices:
    full = of.tensor.to_tensor()  # input, slice, output
    return stacked(full.permute(1, 2, 0).unflatten(0, (geometry.layers, -1)), geometry, *ALL)


def fact_tk(of: Any, geometry: Geometry) -> Slices:
    inputs, outputs, mixture = of.tensor.factors
    core = of.tensor.core
    full = torch.einsum("abc,ia,ob,sc->soi", core, inputs, outputs, mixture)
    # The middle of fc2 is not turned.
    of_fc2 = torch.einsum("bac,ia,ob,sc->soi", core, inputs, outputs, mixture)
    slices, of_fc2 = (
        stacked(one.unflatten(0, (geometry.layers, -1)), geometry, *ALL) for one in (full, of_fc2)
    )
    return lambda layer, name: (of_fc2 if name == "fc2" else slices)(layer, name)


def lotr(of: Any, geometry: Geometry) -> Slices:
    full = of.tensors[0].to_tensor() * of.scale
    return stacked(full.permute(1, 2, 0).unflatten(0, (geometry.layers, -1)), geometry, "query", "value")


def lorta(of: Any, geometry: Geometry) -> Slices:
    full = of.tensor.to_tensor() * of.scale  # d, head size, head, layer, projection
    return stacked(full.permute(3, 4, 2, 1, 0).flatten(2, 3), geometry, *ALL[:4])


def cara(of: Any, geometry: Geometry) -> Slices:
    attention = of.attention.to_tensor()  # slice, d, head, head size
    attention = attention.permute(0, 2, 3, 1).flatten(1, 2).unflatten(0, (geometry.layers, -1))
    rest = of.mlp.to_tensor().unflatten(0, (geometry.layers, -1))  # layer, slice, d, H·h or d
    own, mlp = (
        stacked(attention, geometry, *ALL[:3]),
        # The second mode is what output and fc1 write, and what fc2 reads.
        stacked(rest, geometry, *ALL[3:]),
    )

    def slices(layer: int, name: str) -> list[Tensor]:
        if name in ALL[:3]:
            return own(layer, name)
        return [one[:, : geometry.hidden].T if name == "fc2" else one for one in mlp(layer, name)]

    return slices


def metatt(of: Any, geometry: Geometry) -> Slices:
    full = of.cores[0]
    for core in list(of.cores)[1:]:
        full = torch.tensordot(full, core, 1)
    # input, layer, slice, output or head and channel
    full = full.flatten(4).squeeze(0).permute(1, 2, 3, 0)
    names = [name for name in ALL if name in {site.projection for site in of.down_of}]
    return stacked(full * of.scale, geometry, *names)


def tenslora(of: Any, geometry: Geometry) -> Slices:
    method = of.method
    axes = [axis for axis in ("layer", "projection") if axis not in method.modes]
    every = [tensor.to_tensor() for tensor in of.tensors]
    if method.factorization == "tt":
        every = [one.permute(0, *range(one.dim() - 1, 0, -1)) for one in every]
    full = torch.stack(every).unflatten(0, [of.axes[axis] for axis in axes] or [1])
    modes = [*(axes or ["one"]), *method.modes]
    full = full if axes else full.squeeze(0)
    modes = modes if axes else modes[1:]
    outputs = [mode for mode in ("head", "head_size", "output") if mode in modes]
    full = full.permute([modes.index(mode) for mode in ("layer", "projection", *outputs, "input")])
    return stacked(full.flatten(2, -2), geometry, *method.projections)


def shared(full: Tensor, geometry: Geometry, how: str) -> Tensor:
    """Key's or value's (K·h, d) of the (H·h, d) of full attention."""
    size, group = geometry.head_size, geometry.heads // geometry.kv_heads
    if how == "cut":
        return full[: geometry.kv_heads * size]
    made = torch.zeros(geometry.kv_heads * size, full.shape[1], dtype=full.dtype)
    for head in range(geometry.heads):
        own = head // group * size
        made[own : own + size] += full[head * size : (head + 1) * size] / group
    return made


def wanted(slices: list[Tensor], site: Site, geometry: Geometry, how: str, turns: set[str]) -> Tensor:
    out, in_ = geometry.shape(site.projection)
    width, hidden = geometry.attention_width, geometry.hidden
    if site.projection in ("gate", "fc1"):
        return torch.cat([one[:hidden, :hidden] for one in slices], 0)[:out]
    if site.projection == "fc2":
        return torch.cat([one[:hidden] for one in slices], 1)[:, :in_]
    (one,) = slices
    one = one.T if site.projection in turns else one
    if site.projection == "output":
        return one[:, :width]
    return shared(one[:width], geometry, how) if site.projection in ("key", "value") else one[:width]


def turning(name: str, geometry: Geometry, options: dict[str, Any]) -> set[str]:
    """The projections that take their slice transposed: those whose heads are on the other side."""
    if name == "cara":
        return set()  # Its second mode is the output of `output` at every shape.
    if geometry.attention_width != geometry.hidden or "att" in options.get("variant", ""):
        return {"output"}
    return set(ALL[:4]) if name == "lorta" and options.get("orientation") != "output_heads" else set()


CASES = [
    (fact_tt, {}),
    (fact_tk, {}),
    (lotr, {}),
    (lorta, {}),
    (lorta, {"orientation": "output_heads"}),
    (cara, {"dropout": 0.0}),
    *((metatt, {"modes": m, "targets": t}) for m in ("4d", "5d") for t in ("qv", "qkvo+mlp")),
    *((tenslora, {"variant": v, "targets": "qkvo"}) for v in VARIANTS),
    *((tenslora, {"variant": v, "targets": "qkvo+mlp"}) for v in VARIANTS if "att" not in v),
    *((tenslora, {"variant": v, "factorization": f}) for v in VARIANTS for f in ("cp", "tt")),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("how", ["tied", "cut"])
@pytest.mark.parametrize(
    ("oracle", "options"),
    CASES,
    ids=lambda one: one.__name__ if callable(one) else "-".join(map(str, one.values())),
)
def test_updates_are_those_of_the_tensor_of_full_attention(
    oracle: Any, options: dict[str, Any], how: str, geometry: Geometry
) -> None:
    name = oracle.__name__
    backbone, adapter = attached(geometry, name, shared_heads=how, scale=0.7, **options)
    x = backbone.inputs()
    backbone.module.eval()
    with torch.no_grad():
        slices = oracle(adapter.parametrisation, geometry)
        turns = turning(name, geometry, options)
        scale = 0.7 if name in ("tenslora", "fact_tt", "fact_tk", "cara") else 1.0
        assert list(adapter.bases) == geometry.sites(create(name, **options).projections)
        for site, delta in adapter.deltas():
            full = wanted(slices(*site), site, geometry, how, turns) * scale
            assert full.abs().max() > 1e-3
            torch.testing.assert_close(delta, full, rtol=1e-10, atol=1e-10)
        adapted = backbone.module(x)
        adapter.merge()
        torch.testing.assert_close(backbone.module(x), adapted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "options"),
    [("fact_tt", {}), ("cara", {"dropout_on": "update"}), ("cara", {}), ("tenslora", {"variant": "qkv"})],
)
def test_a_training_forward_is_that_of_evaluation_but_for_what_is_dropped(
    monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    """Each place of dropout, where the last slice of the MLP is cut."""
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
            bias.div_(2)  # which no dropout meets
        torch.testing.assert_close(other.module.eval()(other.inputs()), trained, rtol=1e-10, atol=1e-10)
    assert (trained - bare).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("lora", {"rank": 4}, 4 * 30 * ((576 + 576) + 2 * (576 + 192))),
        ("lora", {"rank": 1, "targets": "qkvo+mlp"}, 30 * (2 * 1152 + 2 * 768 + 3 * (576 + 1536))),
        ("tenslora", {"variant": "att_qkv_depth", "ranks": (4,) * 5}, 4 * (576 + 64 + 9 + 3 + 30) + 4**5),
        ("tenslora", {"variant": "att", "ranks": (4,) * 3}, 90 * (4 * (576 + 64 + 9) + 4**3)),
        # Four slices of the attention and three of each of gate, fc1 and fc2.
        (
            "tenslora",
            {"variant": "qkv_depth", "ranks": (4,) * 4, "targets": "qkvo+mlp"},
            4 * (576 + 576 + 13 + 30) + 4**4,
        ),
        ("lotr", {"rank": 4}, 4 * (576 + 576) + 2 * 30 * 4**2),
        ("lorta", {"rank": 4}, 4 * (576 + 64 + 9 + 30 + 4)),
        ("fact_tt", {"rank": 4}, 4 * (576 + 576) + 13 * 30 * 4**2),
        ("fact_tk", {"rank": 4}, 4 * (576 + 576 + 13 * 30) + 4**3),
        # Modes of the trains: 8·8·8·9 and 4·6·8·8; 12·12·16·16; 9·8·8 and 8·6·4.
        ("loretta_rep", {"rank": 4}, 30 * (3 * (17 * 4 + 16 * 4**2) + 12 * 4 + 14 * 4**2)),
        ("loretta_adp", {"rank": 4}, 60 * (2 * (28 * 4 + 28 * 4**2) + 64 + 576)),
        ("tt_lora", {"rank": 4}, 30 * ((18 + 17) * 4 + (32 + 26) * 4**2)),
        ("trac", {"rank": 4}, 30 * (85 + 237 + 85 + 140) + (108 + 324 + 108 + 288) * 4),
        ("lora_xs", {"rank": 4}, 30 * 7 * 4**2),
        ("quanta", {"axes": (6, 6, 4, 4)}, 60 * (36**2 + 4 * 24**2 + 16**2)),
        ("cp", {"rank": 4}, 30 * 4 * ((4 * 24 + 1) + (2 * 24 + 12 + 16 + 1))),
        ("dota", {"rank": 4}, 30 * ((52 + 36) * 4 + (52 + 40) * 4**2)),
        ("metatt", {"rank": 4}, 4 * (576 + 576) + (30 + 2) * 4**2),
        ("metatt", {"rank": 4, "modes": "5d"}, 4 * (576 + 64) + (30 + 2 + 9) * 4**2),
        ("metatt", {"rank": 4, "targets": "qkvo+mlp"}, 4 * (576 + 576) + (30 + 13) * 4**2),
        (
            "cara",
            {"rank": 4},
            4 * (90 + 576 + 9 + 64 + 1) + 4 * (10 * 30 + 576 + 576 + 1) + 2 * 576 + 2 * 1536,
        ),
    ],
)
def test_counts_at_the_shape_of_smollm2(name: str, options: dict[str, Any], count: int) -> None:
    method = create(name, **options)
    assert method.count(SMOLLM2) == count
    if isinstance(method, StackedMethod):
        assert create(name, **options, shared_heads="cut").count(SMOLLM2) == count


def test_sharing_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(UserError, match="9 query heads cannot share 2 key and value heads evenly"):
        Geometry(36, 9, 2, 30, kv_heads=2)
    with pytest.raises(UserError, match=naming("head_size", 1, 0)):
        Geometry(36, 9, 2, 30, head_size=0)


def test_a_geometry_of_full_attention_is_what_it_was() -> None:
    assert Geometry(24, 4, 3, 96) == Geometry(24, 4, 3, 96, kv_heads=4, head_size=6)
    assert str(Geometry(24, 4, 3, 96)) == "d=24, H=4, L=3, mlp=96"
    assert str(WIDER) == "d=24, H=9, K=3, h=4, L=2, mlp=60, gated"


def test_sharing_is_in_an_identity_only_where_it_was_chosen() -> None:
    assert "shared_heads" not in create("lotr", rank=2).identity()
    assert create("lotr", rank=2, shared_heads="cut").identity()["shared_heads"] == "cut"
