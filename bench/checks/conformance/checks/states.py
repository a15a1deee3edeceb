"""Checks of an adapter's stored state, its initial values, and the traces that it leaves on the backbone."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file, save_file
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
from tensorbench.methods.errors import UserError


def state(subject: Subject) -> None:
    """Checks that an adapter that was saved and loaded on a copy of the backbone gives the same outputs.

    Also checks that a state with a wrong name or shape is refused and changes nothing.
    """
    backbone, adapter = subject.randomised()
    saved, trained = adapter.state(), adapter.named_parameters()
    sizes = {name: tensor.numel() for name, tensor in saved.items()}
    expect(
        sum(sizes.get(name, 0) for name in trained) == subject.method.peak_count(subject.geometry),
        "state() does not hold each parameter once",
    )
    frozen = sum(size for name, size in sizes.items() if name in adapter.frozen())
    strange = sorted(set(saved) - {*trained, *adapter.kept()})
    expect(not strange, f"state() holds what is neither trained nor kept: {strange[:4]}")
    formula = subject.method.kept_count(subject.geometry)
    expect(frozen == formula, f"state() holds {frozen:,} frozen numbers, kept_count says {formula:,}")
    kept = {name: tensor.clone() for name, tensor in saved.items()}
    with tempfile.TemporaryDirectory() as folder:
        save_file(saved, Path(folder) / "adapter.safetensors")
        loaded = load_file(Path(folder) / "adapter.safetensors")
    other = subject.backbone()
    fresh = subject.attach(other, seed=8)
    fresh.load(loaded)
    expect_equal(fresh.state(), saved, "loaded state")
    expect_equal(fresh.frozen(), adapter.frozen(), "frozen parts after loading")
    expected = outputs(backbone, subject.batch())
    expect(same_bits(outputs(other, subject.batch()), expected), "outputs differ after loading")
    wrong = {"another name": {**loaded, "no.such.parameter": torch.zeros(1)}}
    if loaded:
        first = next(iter(loaded))
        changed = {name: tensor + 1 for name, tensor in loaded.items()}
        wrong["a missing name"] = {name: tensor for name, tensor in changed.items() if name != first}
        wrong["a wrong shape"] = {**changed, first: torch.zeros(*loaded[first].shape, 2)}
    for what, refused in wrong.items():
        try:
            fresh.load(refused)
        except UserError:
            expect_equal(fresh.state(), saved, f"state after refusing {what}")
        else:
            raise AssertionError(f"a state with {what} is not refused")
    scatter(adapter, seed=6)
    expect_equal(saved, kept, "a state after its parameters have changed")


def seeds(subject: Subject) -> str | None:
    """Checks that an adapter's initial values depend on the seed of its generator and on no other randomness.

    Also checks that attaching does not change the global random states of torch, random and numpy. Two seeds
    must give different initial values, unless the method gives a reason in `fixed_start`, or initialises from
    constants or the backbone's weights.
    """
    starts = []
    for seed, ambient in ((3, 0), (3, 1), (4, 1)):
        backbone = subject.backbone()
        torch.default_generator.manual_seed(ambient)
        random.seed(ambient)
        numpy.random.seed(ambient)
        before = _random_states()
        adapter = subject.attach(backbone, seed)
        moved = [name for name, value in _random_states().items() if value != before[name]]
        expect(not moved, f"attach moves the global random state of {', '.join(moved)}")
        starts.append(adapter.state())
    expect_equal(starts[1], starts[0], "the same seed")
    if not subject.adapts:
        return None
    names = adapter.named_parameters()
    if any(not same_bits(starts[2][name], starts[0][name]) for name in names):
        expect(not subject.method.fixed_start, f"seeds give other starts, yet: {subject.method.fixed_start}")
        return None
    weights = subject.backbone().module.state_dict().values()
    drawn = [
        name
        for name in names
        if not (starts[0][name] == starts[0][name].flatten()[0]).all()
        and not any(torch.equal(starts[0][name], weight) for weight in weights)
    ]
    if drawn and subject.method.fixed_start:
        return f"one start for all seeds: {subject.method.fixed_start}"
    expect(not drawn, f"another seed gives the same start: {drawn[:4]} (see Method.fixed_start)")
    return "starts from constants"


def _random_states() -> dict[str, str]:
    return {
        "torch": repr(torch.get_rng_state().tolist()),
        "random": repr(random.getstate()),
        "numpy": repr(numpy.random.get_state(legacy=False)["state"]),
    }


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
            _train_adapter(adapter, backbone, batch)
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


def _train_adapter(adapter: Adapter, backbone: LoadedBackbone, batch: dict[str, Tensor]) -> None:
    groups = [group for group in adapter.parameter_groups() if group["name"] != "head"]
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
    """Checks that outputs inside the context `Adapter.hold` equal those outside it.

    Also checks that no tensors are kept after the context, even after an error, and that changes of
    parameters take effect after it.
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
