"""Determines the capabilities of a method by trying the method on a tiny model."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

from tensorbench.methods.adapter import Adapter
from tensorbench.methods.backbone import Geometry
from tensorbench.methods.base import Method
from tensorbench.methods.errors import NotLowRank, UserError
from tensorbench.methods.skeleton import SkeletonBackbone


class Capability(StrEnum):
    """A property of a method, such as whether its update can be merged.

    The value of a member is the text that is stored and shown.
    """

    #: `merge` adds the update to the backbone's weights without changing outputs. Inference with a merged
    #: update costs no more than without the method.
    MERGES = "merges"
    #: Every update is a low-rank pair, as LoRA's are.
    EXPORTS = "exports as LoRA"
    #: A fresh adapter changes no output.
    ZERO_START = "exact zero start"
    #: Training also changes biases of the adapted layers.
    BIASES = "trained biases"
    #: The method supports shared key and value heads, a head size that does not divide the hidden size, and a
    #: gated MLP whose width is no multiple of the hidden size.
    UNEQUAL = "unequal shapes"
    #: Inference costs no more than without the method even if the update is not merged.
    FREE = "no cost unmerged"
    #: An example's outputs depend on the other examples of its batch.
    BATCH = "depends on the batch"


#: A geometry in which query, key, value and output are square. Head size, heads and layers all differ.
EVEN = Geometry(hidden=24, heads=3, layers=2, mlp=96, encoder=1)
#: A geometry in which key and value have fewer heads, the head size does not divide the hidden size, and the
#: gated MLP's width is no multiple of the hidden size.
UNEVEN = Geometry(hidden=24, heads=4, layers=3, mlp=60, encoder=1, kv_heads=2, head_size=5, gated=True)
#: The rank at which a method with a free size is tried. Capabilities do not depend on the rank.
RANK = 2


def capabilities(method: Method) -> tuple[Capability, ...]:
    """Returns the method's capabilities, in the order of `Capability`.

    Empty if the method's adapter has no parameters. Raises any error that the method raises on `EVEN`.
    """
    sized = method.isorank(RANK) if method.sizeable else method
    # The skeleton and some starts draw from torch's global stream; the caller's state must not change.
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
    # Layers made by a library start in training mode, where some of them draw random numbers.
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
    """Builds the adapter like `Method.attach`, but compares no counts: the encoder's count is made up."""
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
    """Returns the class name of every module of the backbone, by the module's path."""
    return {name: type(module).__name__ for name, module in backbone.module.named_modules()}


def _move(adapter: Adapter) -> None:
    """Moves the parameters away from their initial values, since many of these are zero."""
    for parameter in adapter.named_parameters().values():
        parameter.add_(torch.randn(parameter.shape), alpha=0.1)


def _mixes_examples(backbone: SkeletonBackbone, x: Tensor) -> bool:
    """Whether an example's outputs depend on the rest of its batch. False if outputs are random."""
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
    return torch.allclose(first, second, rtol=1e-4, atol=1e-5)
