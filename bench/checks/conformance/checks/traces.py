"""Checks that an adapter leaves nothing on the backbone after a forward, an error, or `detach`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tensorbench.backbones.backbone import LoadedBackbone
from tensorbench.checks.conformance.subject import (
    Subject,
    expect,
    expect_equal,
    gradients,
    loss,
    outputs,
    same_bits,
    scatter,
    snapshot,
    trained,
    transient_tensors,
)
from tensorbench.methods.adapter import Adapter


def detach(subject: Subject) -> None:
    """Checks that `detach` restores the backbone's modules, weights and `requires_grad`.

    It is called after training, after a forward that raised, and after merging.
    """
    for state in ("trained", "interrupted", *(() if subject.method.not_mergeable else ("merged",))):
        backbone, batch = subject.backbone(), subject.batch()
        module = backbone.module
        for index, parameter in enumerate(module.parameters()):
            parameter.requires_grad_(index % 3 == 0)
        before = _surroundings(backbone)
        bare, tensors = outputs(backbone, batch), snapshot(backbone)
        adapter = subject.attach(backbone)
        fresh = outputs(backbone, batch)
        if state == "trained":
            _steps(adapter, backbone, batch, head=False)
        scatter(adapter)
        if state == "merged":
            adapter.merge()
        if state == "interrupted":
            _interrupt(backbone, batch)
        adapter.detach()
        for what, value in _surroundings(backbone).items():
            expect(value == before[what], f"{what} differs after detach ({state})")
        expect_equal(snapshot(backbone), tensors, f"detached ({state})")
        expect(same_bits(outputs(backbone, batch), bare), f"outputs differ after detach ({state})")
        second = subject.attach(backbone)
        expect(same_bits(outputs(backbone, batch), fresh), f"outputs of a second adapter ({state})")
        second.detach()
        expect(_surroundings(backbone) == before, f"a second adapter leaves traces ({state})")


def _surroundings(backbone: LoadedBackbone) -> dict[str, Any]:
    modules = dict(backbone.module.named_modules())
    return {
        "fingerprint": backbone.fingerprint(),
        "modules": {name: id(module) for name, module in modules.items()},
        "requires_grad": {name: p.requires_grad for name, p in backbone.module.named_parameters()},
        "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
    }


def _steps(
    adapter: Adapter, backbone: LoadedBackbone, batch: dict[str, Tensor], *, head: bool = True
) -> None:
    groups = [group for group in adapter.parameter_groups() if head or group["name"] != "head"]
    if not groups:
        return
    optimizer = torch.optim.Adam(groups, lr=1e-2)
    for _ in range(2):
        loss(backbone.module(**batch)).backward()
        optimizer.step()
        for parameter in trained(adapter, backbone).values():
            parameter.grad = None


class _Interruption(Exception):  # noqa: N818
    pass


def _interrupt(backbone: LoadedBackbone, batch: dict[str, Tensor]) -> None:
    def stop(*_: Any) -> None:
        raise _Interruption

    hook = backbone.head.register_forward_pre_hook(stop)
    try:
        backbone.module(**batch)
    except _Interruption:
        return
    finally:
        hook.remove()
    raise AssertionError("the forward does not call the head")


def interruption(subject: Subject) -> None:
    """Checks that a forward that raises leaves no tensors behind, and that the next forward is correct."""
    backbone, adapter = subject.randomised()
    batch, other = subject.batch(), subject.batch(seed=9)
    expected = outputs(backbone, batch)
    places = transient_tensors(adapter, backbone)
    _interrupt(backbone, other)
    stale = transient_tensors(adapter, backbone) - places
    expect(not stale, f"tensors kept after a forward that raised: {sorted(stale)[:4]}")
    expect(same_bits(outputs(backbone, batch), expected), "outputs differ after a forward that raised")


def transients(subject: Subject) -> None:
    """Checks that no temporary tensor is kept after a forward or a backward pass.

    Also checks that the next forward uses changed parameters.
    """
    backbone, adapter = subject.randomised()
    places = transient_tensors(adapter, backbone)
    names = {name for name, _ in backbone.module.named_parameters()}
    within: set[str] = set()
    hook = backbone.head.register_forward_pre_hook(
        lambda *_: within.update(name for name, _ in backbone.module.named_parameters())
    )
    for train in (True, False):
        backbone.module.train(train)
        logits = backbone.module(**subject.batch())
        expect(within == names, f"parameters only inside a forward: {sorted(within ^ names)[:4]}")
        stale = transient_tensors(adapter, backbone) - places
        expect(not stale, f"tensors kept after a forward: {sorted(stale)[:4]}")
        gradients(adapter, backbone, logits)
        stale = transient_tensors(adapter, backbone) - places
        expect(not stale, f"tensors kept after a backward: {sorted(stale)[:4]}")
    hook.remove()
    first = outputs(backbone, subject.batch())
    scatter(adapter, seed=6)
    if subject.adapts:
        moved = float((outputs(backbone, subject.batch()) - first).abs().max())
        expect(moved > 1e-5, "changed parameters do not change the outputs")


def hold(subject: Subject) -> None:
    """Checks that outputs inside `Adapter.hold` equal those outside.

    Also checks that no tensors are kept at its end, even after an error, and that changed parameters then
    take effect.
    """
    backbone, adapter = subject.randomised()
    batch = subject.batch()
    expected = outputs(backbone, batch)
    places = transient_tensors(adapter, backbone)
    for raises in (False, True):
        try:
            with adapter.hold():
                for _ in range(2):
                    expect(same_bits(outputs(backbone, batch), expected), "outputs differ inside hold")
                if raises:
                    _interrupt(backbone, batch)
                    expect(
                        same_bits(outputs(backbone, batch), expected), "outputs differ after an error in hold"
                    )
                    raise _Interruption
        except _Interruption:
            pass
        stale = transient_tensors(adapter, backbone) - places
        expect(not stale, f"tensors kept after hold: {sorted(stale)[:4]}")
    scatter(adapter, seed=6)
    logits = backbone.module(**batch)
    grads = gradients(adapter, backbone, logits)
    if subject.adapts:
        expect(
            float((logits.detach() - expected).abs().max()) > 1e-5,
            "a parameter's change is not seen after hold",
        )
        expect(
            any(g is not None and bool(g.any()) for n, g in grads.items() if not n.startswith("head.")),
            "no gradient after hold",
        )
