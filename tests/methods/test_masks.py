"""Tests an adapter's dropout: its own random stream, and masks reproduced when a layer is recomputed."""

from __future__ import annotations

import copy
import gc
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tensorbench.methods import create
from tensorbench.methods.backbone import Geometry
from tensorbench.methods.base import Method
from tensorbench.methods.lowrank import LowRankAdapter, Masks
from tensorbench.methods.skeleton import SkeletonBackbone

from .toy import GEOMETRY, ToyBackbone, attached

#: One method for each place of dropout. The scale keeps attention from saturating.
DROPPING: list[dict[str, Any]] = [
    {"name": "tenslora", "variant": "qkv_depth", "targets": "qkvo", "scale": 0.1, "dropout": 0.3},
    {"name": "fact_tt", "scale": 0.1, "dropout": 0.3},
    {"name": "cara", "scale": 0.1, "dropout": 0.3, "dropout_on": "update"},
]


def sized(name: str, **options: Any) -> Method:
    return create(name, **options).isorank(2)


def training(mode: str = "", geometry: Geometry = GEOMETRY, **options: Any) -> tuple[ToyBackbone, Any]:
    backbone, adapter = attached(geometry, **options)
    backbone.module.checkpoint = mode
    backbone.module.train()
    return backbone, adapter


def taken(adapter: LowRankAdapter) -> dict[str, Tensor]:
    """Returns and clears the gradients of parameters."""
    gradients_ = {name: parameter.grad for name, parameter in adapter.named_parameters().items()}
    for parameter in adapter.named_parameters().values():
        parameter.grad = None
    assert all(gradient is not None and gradient.any() for gradient in gradients_.values())
    return gradients_  # type: ignore[return-value]


def assert_same(actual: list[dict[str, Tensor]], expected_all: list[dict[str, Tensor]]) -> None:
    for gradients_, expected in zip(actual, expected_all, strict=True):
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients_[name], gradient, rtol=1e-12, atol=1e-12)


# --- the stream ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_entries_are_dropped_or_scaled_up(dtype: torch.dtype) -> None:
    place = Masks(0.25, seed=1).place()
    x = torch.full((100, 100), 3.0, dtype=dtype)
    dropped = place.drop(x)
    assert dropped.dtype == dtype
    assert set(dropped.unique().tolist()) == {0.0, 4.0}
    assert abs((dropped == 0).double().mean() - 0.25) < 0.02


def test_each_forward_and_each_place_has_a_mask_of_its_own() -> None:
    masks = Masks(0.5, seed=1)
    places = [masks.place() for _ in range(2)]
    ones = torch.ones(50)
    drawn = []
    for _ in range(2):
        masks.begin()
        first = [place.drop(ones) for place in places]
        repeated = [place.drop(ones) for place in reversed(places)][::-1]
        assert all(map(torch.equal, first, repeated))
        drawn += first
        masks.end()
    assert len({tuple(mask.tolist()) for mask in drawn}) == 4


@pytest.mark.parametrize("options", DROPPING)
def test_the_seed_alone_decides_and_the_global_stream_is_left_alone(options: dict[str, Any]) -> None:
    started = attached(**options)[1].state()

    def outputs(seed: int, modes: tuple[bool, ...] = (True, True)) -> list[Tensor]:
        backbone = ToyBackbone(GEOMETRY)
        adapter = sized(**options).attach(backbone, torch.Generator().manual_seed(seed))
        adapter.load(started)
        state = torch.get_rng_state()
        logits = []
        for mode in modes:
            backbone.module.train(mode)
            logits.append(backbone.module(backbone.inputs()))
        logits[-1].sum().backward()
        assert torch.equal(torch.get_rng_state(), state)
        return [logits_ for logits_, mode in zip(logits, modes, strict=True) if mode]

    first, other = outputs(0), outputs(1)
    torch.rand(3)
    # An evaluation draws nothing.
    assert all(map(torch.equal, first, outputs(0, modes=(True, False, True))))
    assert not torch.equal(first[0], first[1])
    assert not any(map(torch.equal, first, other))


@pytest.mark.parametrize("options", DROPPING)
def test_starts_are_the_same_with_and_without_dropout(options: dict[str, Any]) -> None:
    def start(dropout: float) -> dict[str, Tensor]:
        method = sized(**options | {"dropout": dropout})
        return method.attach(ToyBackbone(GEOMETRY), torch.Generator().manual_seed(5)).state()

    dropped, plain = start(0.3), start(0.0)
    assert all(torch.equal(dropped[name], tensor) for name, tensor in plain.items())


# --- layers that a backward runs again ---


@pytest.mark.parametrize("options", DROPPING)
@pytest.mark.parametrize("geometry", [GEOMETRY, Geometry(12, 3, 1, 48)], ids=["two layers", "one layer"])
@pytest.mark.parametrize("order", ["alternating", "together", "first first", "last first", "twice"])
def test_a_recomputed_layer_finds_the_mask_of_its_forward(
    order: str, geometry: Geometry, options: dict[str, Any]
) -> None:
    results = []
    for mode in ("", "non-reentrant"):
        backbone, adapter = training(mode, geometry, **options)
        gradients_ = []
        if order == "alternating":
            for _ in range(2):
                backbone.module(backbone.inputs()).square().sum().backward()
                gradients_.append(taken(adapter))
        else:
            losses = [backbone.module(backbone.inputs()).square().sum() * (i + 1) for i in range(3)]
            if order == "together":
                losses = [torch.stack(losses).sum()]
            elif order == "last first":
                losses.reverse()
            elif order == "twice":
                losses = [loss for loss in losses for _ in range(2)]
            for i, loss in enumerate(losses):
                loss.backward(retain_graph=order == "twice" and i % 2 == 0)
                gradients_.append(taken(adapter))
        results.append(gradients_)
    assert_same(results[1], results[0])
    if order == "twice":
        assert_same(results[1][::2], results[1][1::2])


@pytest.mark.parametrize("options", DROPPING)
def test_masks_go_with_the_graphs_of_their_forwards(options: dict[str, Any]) -> None:
    backbone, adapter = training("non-reentrant", **options)
    logits = [backbone.module(backbone.inputs()) for _ in range(3)]
    with torch.no_grad():
        backbone.module(backbone.inputs())
    assert len(adapter.masks._open) == 3
    logits.pop()
    total = torch.stack([logits_.sum() for logits_ in logits]).sum()
    logits.clear()
    gc.collect()
    assert len(adapter.masks._open) == 2
    total.backward()
    del total
    assert len(adapter.masks._open) == 0


def test_a_backbone_that_is_recomputed_as_a_whole() -> None:
    results = []
    for entire in (False, True):
        backbone, adapter = training(**DROPPING[0])
        module = backbone.module
        inputs = backbone.inputs().requires_grad_()
        for _ in range(2):
            logits = checkpoint(module, inputs, use_reentrant=False) if entire else module(inputs)
            logits.square().sum().backward()
        results.append(taken(adapter))
    assert_same(results[1:], results[:1])


def test_a_copy_of_a_backbone_is_recomputed_as_a_whole() -> None:
    module = training(**DROPPING[0])[0].module
    inputs = torch.ones(2, 3, GEOMETRY.hidden, dtype=torch.float64, requires_grad=True)
    graph = module(inputs)
    copied = copy.deepcopy(module)
    for _ in range(2):
        checkpoint(copied, inputs, use_reentrant=False).square().sum().backward()
    del graph


def test_a_new_process_runs_the_module_that_it_is_given() -> None:
    backbone = SkeletonBackbone.random(GEOMETRY)
    sized(**DROPPING[1]).attach(backbone, torch.Generator())
    process = get_context("spawn").Process(target=backbone.module.train(), args=(torch.ones(2, 12),))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_two_forwards_in_one_checkpoint_are_refused() -> None:
    backbone, _ = training(**DROPPING[0])
    module = backbone.module
    logits = checkpoint(lambda x: module(x) - module(2 * x), backbone.inputs(), use_reentrant=False)
    with pytest.raises(RuntimeError, match="which forward"):
        logits.square().sum().backward()


@pytest.mark.parametrize(("entire", "dropout"), [(False, 0.3), (True, 0.3), (False, 0.0)])
def test_reentrant_checkpointing_is_refused(entire: bool, dropout: float) -> None:
    backbone, _ = training("" if entire else "reentrant", **DROPPING[0] | {"dropout": dropout})
    inputs = backbone.inputs().requires_grad_()
    logits = checkpoint(backbone.module, inputs, use_reentrant=True) if entire else backbone.module(inputs)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        logits.square().sum().backward()


# --- where it may be called ---


def test_a_layer_called_by_itself_drops_too() -> None:
    backbone, adapter = training(**DROPPING[0])
    layer = backbone.module.get_submodule("layers.0.query")
    with torch.no_grad(), adapter.hold():
        first, second = (layer(backbone.inputs()) for _ in range(2))
    assert not torch.equal(first, second)


def test_a_forward_that_raises_ends_too() -> None:
    backbone, adapter = training(**DROPPING[0])
    with pytest.raises(RuntimeError):
        backbone.module(backbone.inputs()[..., 1:])
    assert adapter.masks._running is None
    assert len(adapter.masks._open) == 0


def test_compiled_code_drops_from_the_global_stream() -> None:
    backbone, adapter = training(**DROPPING[0])
    torch._dynamo.reset()
    try:
        backbone.module.compile(backend="aot_eager", fullgraph=True)
        logits = []
        for seed in (3, 4, 3):
            torch.manual_seed(seed)
            logits.append(backbone.module(backbone.inputs()))
            logits[-1].square().sum().backward()
            taken(adapter)
    finally:
        torch._dynamo.reset()
    assert torch.equal(logits[0], logits[2])
    assert not torch.equal(logits[0], logits[1])
