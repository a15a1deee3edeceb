"""The capabilities of methods, tried out on a tiny model."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

from methods.adapter import Adapter
from methods.backbone import Geometry
from methods.base import Method
from methods.errors import NotLowRank, UserError
from methods.skeleton import SkeletonBackbone


class Capability(StrEnum):
    """The words under which capabilities are stored and shown."""

    #: `merge` puts the update into the backbone's weights and changes no output; inference then costs nothing
    #: more than without the method.
    MERGES = "merges"
    #: Every update is a low-rank pair.
    EXPORTS = "exports as LoRA"
    #: A fresh adapter changes no output.
    ZERO_START = "exact zero start"
    #: Training moves biases of the adapted layers too.
    BIASES = "trained biases"
    #: It can be put on a model whose heads of key and value are shared and of a size of their own, and whose
    #: MLP is gated and of a width that is no multiple of the hidden size.
    UNEQUAL = "unequal shapes"
    #: Inference costs nothing more than without the method, also where it is not merged.
    FREE = "no cost unmerged"
    #: An example's outputs depend on the other examples of its batch.
    BATCH = "depends on the batch"


#: Head size, number of heads and number of layers differ, as do the projections of a layer.
EVEN = Geometry(hidden=24, heads=3, layers=2, mlp=96, encoder=1)
#: Key and value have fewer heads, whose size is their own, and the MLP has a gate and a width that is no
#: multiple of the hidden size.
UNEVEN = Geometry(hidden=24, heads=4, layers=3, mlp=60, encoder=1, kv_heads=2, head_size=5, gated=True)
#: The rank of methods whose size is free. Capabilities do not depend on it.
RANK = 2


def capabilities(method: Method) -> tuple[Capability, ...]:
    """The method's capabilities, in the order of `Capability`. Empty if it adapts nothing.

    Raises whatever the method raises on a tiny model of even shapes.
    """
    sized = method.isorank(RANK) if method.sizeable else method
    # A skeleton and some starts draw from the global stream, which is the caller's.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)
        capabilities = _seen(sized)
        if capabilities and _fits(sized, UNEVEN):
            capabilities.add(Capability.UNEQUAL)
    return tuple(capability for capability in Capability if capability in capabilities)


def _seen(method: Method) -> set[Capability]:
    backbone = SkeletonBackbone.random(EVEN)
    x = torch.randn(5, EVEN.hidden)
    plain, layers = backbone.module(x), _layers(backbone)
    adapter = _put(method, backbone)
    # Layers that a library makes are in training mode, in which some draw.
    backbone.module.eval()
    if not adapter.named_parameters():
        return set()
    observed = {
        Capability.ZERO_START: _same(backbone.module(x), plain),
        Capability.FREE: _layers(backbone) == layers,
    }
    _move(adapter)
    observed |= {
        Capability.BATCH: _mixes_examples(backbone, x),
        Capability.EXPORTS: _is_low_rank(adapter),
        Capability.BIASES: _moves_biases(adapter),
        Capability.MERGES: _merges(adapter, backbone, x),
    }
    return {capability for capability, holds in observed.items() if holds}


def _put(method: Method, backbone: SkeletonBackbone) -> Adapter:
    """Installs an adapter without `attach`, which compares counts: the tiny encoder has none."""
    method.check(backbone.geometry, backbone.projections)
    return method.put(backbone, torch.Generator().manual_seed(0))


def _fits(method: Method, geometry: Geometry) -> bool:
    backbone = SkeletonBackbone.random(geometry)
    try:
        _put(method, backbone)
    except UserError:
        return False
    backbone.module(torch.randn(1, geometry.hidden))
    return True


def _layers(backbone: SkeletonBackbone) -> dict[str, str]:
    """The kind of every module, by its path."""
    return {name: type(module).__name__ for name, module in backbone.module.named_modules()}


def _move(adapter: Adapter) -> None:
    """Moves the parameters away from their start, where many are zero."""
    for parameter in adapter.named_parameters().values():
        parameter.add_(torch.randn(parameter.shape), alpha=0.1)


def _mixes_examples(backbone: SkeletonBackbone, x: Tensor) -> bool:
    """Whether an example's outputs depend on the rest of its batch, randomness excluded."""
    first, second = backbone.module(x)[:1], backbone.module(x)[:1]
    beside_others = backbone.module(torch.cat([x[:1], -x[1:]]))[:1]
    return _same(first, second) and not _same(first, beside_others)


def _is_low_rank(adapter: Adapter) -> bool:
    try:
        return bool(adapter.factors())
    except NotLowRank:
        return False


def _moves_biases(adapter: Adapter) -> bool:
    trained = {id(parameter) for parameter in adapter.named_parameters().values()}
    own = any(id(base.bias) in trained for base in adapter.bases.values() if base.bias is not None)
    return own or any(bool(update.any()) for update in adapter.biases().values())


def _merges(adapter: Adapter, backbone: SkeletonBackbone, x: Tensor) -> bool:
    expected = backbone.module(x)
    try:
        adapter.merge()
    except UserError:
        return False
    return _same(backbone.module(x), expected)


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are equal up to rounding."""
    return torch.allclose(first, second, rtol=1e-4, atol=1e-5)
